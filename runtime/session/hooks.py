"""Hook functions, which read or replace a tensor on its way through the SAE, as in TransformerLens."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..arrays.arguments import as_integer
from ..artifact.names import HOOK_NAMES
from ..errors import InputError, UnknownHookError
from .callers import PerCaller

HookFunction: TypeAlias = Callable[..., Any]
"""Called as `function(tensor, hook=point)`. It returns a replacement, or None to keep the tensor."""

HookSelector: TypeAlias = str | Callable[[str], bool]
"""The name of a hook, or a predicate on names."""

DIRECTIONS = ("fwd", "bwd")

FwdHooks: TypeAlias = Sequence[tuple[HookSelector, HookFunction]]


@dataclass(eq=False)
class HookPoint:
    """The place where a hook function is called; the function gets it as `hook`.

    Attributes:
        name: Name of the hook, such as "hook_sae_acts_post".
        ctx: Storage for hook functions, for example for a counter. It is kept between calls until it is cleared.
    """

    name: str
    ctx: dict[Any, Any] = field(default_factory=dict, repr=False)

    def clear_context(self) -> None:
        """Replace `ctx` with an empty dict."""
        self.ctx = {}


@dataclass(frozen=True, eq=False)
class PlacedHook:
    """A hook function placed at one hook.

    Attributes:
        name: Name of the hook.
        function: Function to call.
        order: Position among all functions; the smallest is called first.
        level: Depth of the `hooks` block that placed it; None if `add_hook` did.
        is_permanent: Whether `reset_hooks` keeps it by default.
    """

    name: str
    function: HookFunction
    order: int
    level: int | None
    is_permanent: bool = False

    def survives(self, including_permanent: bool, level: int | None) -> bool:
        """Tell whether a reset keeps this function."""
        return (self.is_permanent and not including_permanent) or level not in (None, self.level)


@dataclass(eq=False)
class _Blocks:
    """The `hooks` blocks that one thread or asyncio task is in, and their functions."""

    level: int = 0
    placed: list[PlacedHook] = field(default_factory=list)


class HookRegistry:
    """The hook functions of a session.

    Functions of a block apply to the thread or asyncio task that entered it. Functions that were added, or that a block
    left in place, apply to every caller.

    Attributes:
        points: Hook points of the six hooks by name, in firing order.
    """

    def __init__(self) -> None:
        self.points = {name: HookPoint(name) for name in HOOK_NAMES}
        self._added: tuple[PlacedHook, ...] = ()
        self._blocks: PerCaller[_Blocks] = PerCaller("hooks")
        self._counter = itertools.count(1)
        self._lock = threading.Lock()

    def active(self) -> tuple[PlacedHook, ...]:
        """Return the functions that apply to the caller, in the order in which they are called."""
        blocks = self._blocks.get()
        if blocks is None or not blocks.placed:
            return self._added
        return tuple(sorted((*self._added, *blocks.placed), key=lambda hook: hook.order))

    def add(
        self, where: HookSelector, function: HookFunction, is_permanent: bool, level: int | None, prepend: bool
    ) -> None:
        """Add a function that is called until it is reset.

        Raises:
            UnknownHookError: `where` is not the name of a hook.
            InputError: `where` is neither a string nor a function, or `function` cannot be called.
        """
        if level is not None:
            level = as_integer("level", level, hint=", or None")
        placed = self._place(where, function, level, is_permanent, prepend)
        self._add(placed)

    @contextmanager
    def block(self, fwd_hooks: FwdHooks, reset_hooks_end: bool, clear_contexts: bool) -> Iterator[None]:
        """Call functions inside a `with` block; see `SAESession.hooks`.

        Raises:
            UnknownHookError: A name is not a hook.
            InputError: `fwd_hooks` are not pairs of a hook and a function.
        """
        pairs = checked_pairs(fwd_hooks)
        blocks = self._blocks.get_or_make(_Blocks)
        blocks.level += 1
        level = blocks.level
        try:
            for where, function in pairs:
                blocks.placed += self._place(where, function, level)
            yield
        finally:
            if reset_hooks_end:
                self._remove(blocks, False, level)
                if clear_contexts:
                    self.clear_contexts()
            else:
                left = [hook for hook in blocks.placed if hook.level == level]
                blocks.placed = [hook for hook in blocks.placed if hook.level != level]
                self._add(left)
            blocks.level -= 1
            if not blocks.level:
                self._blocks.remove(blocks)

    def reset(self, including_permanent: bool, level: int | None) -> None:
        """Remove the functions that apply to the caller; see `SAESession.reset_hooks`."""
        self._remove(self._blocks.get(), including_permanent, level)

    def clear_contexts(self) -> None:
        """Clear the `ctx` of every hook point."""
        for point in self.points.values():
            point.clear_context()

    def _place(
        self,
        where: HookSelector,
        function: HookFunction,
        level: int | None,
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> list[PlacedHook]:
        """Return a function at every hook that `where` selects."""
        names = names_for(function, where, HOOK_NAMES)
        order = next(self._counter)
        return [PlacedHook(name, function, -order if prepend else order, level, is_permanent) for name in names]

    def _add(self, placed: Sequence[PlacedHook]) -> None:
        with self._lock:
            self._added = tuple(sorted((*self._added, *placed), key=lambda hook: hook.order))

    def _remove(self, blocks: _Blocks | None, including_permanent: bool, level: int | None) -> None:
        with self._lock:
            self._added = tuple(hook for hook in self._added if hook.survives(including_permanent, level))
        if blocks is not None:
            blocks.placed = [hook for hook in blocks.placed if hook.survives(including_permanent, level)]


def names_for(
    function: HookFunction, where: HookSelector, known: Sequence[str], unknown: str = "no such hook"
) -> list[str]:
    """Return the names of the hooks, of those that are known, at which a function is placed.

    Raises:
        UnknownHookError: `where` is a name that is not known.
        InputError: `where` is neither a string nor a function, or `function` cannot be called.
    """
    if not isinstance(where, str) and not callable(where):
        raise InputError(f"A hook is {where!r}; it must be a name or a predicate on names.")
    if not callable(function):
        raise InputError(f"The function for the hook {where!r} is {function!r}, which cannot be called.")
    if isinstance(where, str) and where not in known:
        raise UnknownHookError(f"{where!r}: {unknown}. There are {', '.join(known)}.")
    return [where] if isinstance(where, str) else [name for name in known if where(name)]


def checked_pairs(fwd_hooks: FwdHooks) -> list[tuple[HookSelector, HookFunction]]:
    """Return the pairs of a hook and a function that a caller gave.

    Raises:
        InputError: They are not pairs.
    """
    try:
        return [(where, function) for where, function in fwd_hooks]
    except (TypeError, ValueError):  # it is not a sequence, or not one of pairs
        raise InputError(f"fwd_hooks is {fwd_hooks!r}; it must be a list of pairs of a hook and a function.") from None


def refuse_backward(bwd_hooks: Sequence[Any], direction: str = "fwd") -> None:
    """Refuse hooks on gradients, which a graph does not compute.

    Raises:
        InputError: A backward hook was given, or something that is not a direction.
    """
    if not isinstance(direction, str) or direction not in DIRECTIONS:
        raise InputError(f"The direction of a hook is {direction!r}; it must be one of {', '.join(DIRECTIONS)}.")
    if not isinstance(bwd_hooks, Sequence):
        raise InputError(f"bwd_hooks is {bwd_hooks!r}; it must be an empty list.")
    if len(bwd_hooks) or direction != "fwd":
        raise InputError(
            "A backward hook was given; an artifact does not compute gradients, so only forward hooks can run. Run the "
            "PyTorch original for gradients: saeexport.load(path)."
        )

"""Which SAEs are attached to the host, and with which edits, for each caller.

What `add_sae` attaches applies to every caller. What a block attaches or edits applies to the thread or asyncio task
that entered the block, like the hook functions of a session.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from ..arrays.tensor import Array
from ..errors import UnknownHookError
from ..session.hooks import caller
from ..session.interventions import Intervention


@dataclass(frozen=True)
class Setup:
    """What applies to a call.

    Attributes:
        attached: Whether the error term is on, for each hook with an attached SAE, in the order of the graph.
        edits: The edits of features, by hook.
    """

    attached: Mapping[str, bool] = field(default_factory=dict)
    edits: Mapping[str, Intervention] = field(default_factory=dict)


@dataclass(frozen=True)
class _Blocks:
    """The blocks that one thread or asyncio task is in, the outermost first."""

    owner: object
    setups: tuple[Setup, ...]


class Attachments:
    """The attached SAEs of a session.

    Args:
        error_terms: Whether the error term of each SAE is on by default, by hook, in the order of the graph.
    """

    def __init__(self, error_terms: Mapping[str, bool]) -> None:
        self._error_terms = dict(error_terms)
        self._added: dict[str, bool] = {}
        self._lock = threading.Lock()
        # A task that is started inside a block copies the context, and must not see the block: hence the owner.
        self._blocks: ContextVar[_Blocks | None] = ContextVar("attached", default=None)

    def current(self) -> Setup:
        """Return what applies to the caller. Of several edits of a hook, that of the outer block comes first."""
        attached, edits = dict(self._added), dict[str, Intervention]()
        for setup in self._setups():
            attached.update(setup.attached)
            for hook, intervention in setup.edits.items():
                edits[hook] = followed_by(edits[hook], intervention) if hook in edits else intervention
        return Setup({hook: attached[hook] for hook in self._error_terms if hook in attached}, edits)

    @property
    def is_in_block(self) -> bool:
        """Whether the caller is in a block."""
        return bool(self._setups())

    def chosen(self, hooks: Sequence[str], use_error_term: bool | None) -> dict[str, bool]:
        """Return whether the error term is on for each of some hooks; None takes the SAE's own setting.

        Raises:
            UnknownHookError: A name is not a hook with an SAE.
        """
        for hook in hooks:
            if not isinstance(hook, str) or hook not in self._error_terms:
                raise UnknownHookError(
                    f"{hook!r}: no SAE was grafted at such a hook. There are {', '.join(self._error_terms)}."
                )
        return {hook: self._error_terms[hook] if use_error_term is None else use_error_term for hook in hooks}

    def add(self, attached: Mapping[str, bool]) -> None:
        """Attach SAEs for every caller."""
        with self._lock:
            self._added = {**self._added, **attached}

    def reset(self, hooks: Sequence[str]) -> None:
        """Detach SAEs: those that were added, and those of the blocks that the caller is in."""
        with self._lock:
            self._added = {hook: on for hook, on in self._added.items() if hook not in hooks}
        for setup in self._setups():
            for hook in hooks:
                for what in (setup.attached, setup.edits):
                    assert isinstance(what, dict)
                    what.pop(hook, None)

    @contextmanager
    def block(self, setup: Setup, keep: bool = False) -> Iterator[None]:
        """Apply a setup to the caller inside a `with` block; `keep` attaches its SAEs for every caller at its end."""
        own = Setup(dict(setup.attached), dict(setup.edits))
        token = self._blocks.set(_Blocks(caller(), (*self._setups(), own)))
        try:
            yield
        finally:
            try:
                self._blocks.reset(token)
            except ValueError:  # the block was entered in another context, of which this one is a copy
                self._blocks.set(None)
            if keep:
                self.add(own.attached)

    def _setups(self) -> tuple[Setup, ...]:
        blocks = self._blocks.get()
        return blocks.setups if blocks is not None and blocks.owner == caller() else ()


def followed_by(first: Intervention, second: Intervention) -> Intervention:
    """Return one intervention with the effect of two, one after the other: `(a * s1 + b1) * s2 + b2`."""
    ids = np.union1d(first.ids, second.ids)

    def spread(intervention: Intervention) -> tuple[Array, Array]:
        full = []
        for values, neutral in ((intervention.scale, 1.0), (intervention.shift, 0.0)):
            full.append(np.full((*values.shape[:-1], len(ids)), neutral))
            full[-1][..., np.searchsorted(ids, intervention.ids)] = values
        return full[0], full[1]

    scale, shift = spread(first)
    factor, summand = spread(second)
    return Intervention(ids, scale * factor, shift * factor + summand)

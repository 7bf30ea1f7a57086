"""Forward hooks: functions that read or replace a tensor on its way, as in TransformerLens."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..arrays.tensor import TensorValue
from ..artifact.contracts import ACTIVATE, DECODE, ENCODE, MODEL
from ..artifact.names import (
    FEATURE_HOOKS,
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_NAMES,
    HOOK_OUTPUT,
    HOOK_RECONS,
)
from ..errors import InputError, UnknownHookError
from .batch import Batch
from .graphs import Graphs


@dataclass(frozen=True)
class HookPoint:
    """What a hook function gets as `hook`: the place that it is called at.

    Attributes:
        name: such as "hook_sae_acts_post".
        ctx: for the hook functions' own use, such as counting; it lives as long as the session.
    """

    name: str
    ctx: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


FwdHooks: TypeAlias = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]
PlacedHooks: TypeAlias = tuple[tuple[str, Callable[..., Any]], ...]


def caller() -> object:
    """Return who is calling: the thread, and the asyncio task if there is one."""
    asyncio = sys.modules.get("asyncio")  # who has not imported it has no task
    try:
        task = asyncio.current_task() if asyncio else None
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), task


def placed_hooks(fwd_hooks: FwdHooks) -> PlacedHooks:
    """Return (hook name, function) for every place that `fwd_hooks` names, a predicate's in firing order.

    Raises:
        UnknownHookError: a name is not one of the six; it is a KeyError, as in TransformerLens.
    """
    placed = []
    for where, function in fwd_hooks:
        if isinstance(where, str) and where not in HOOK_NAMES:
            raise UnknownHookError(f"{where!r}: no such hook. There are {', '.join(HOOK_NAMES)}.")
        names = [where] if isinstance(where, str) else [name for name in HOOK_NAMES if where(name)]
        placed += [(name, function) for name in names]
    return tuple(placed)


def run_hooked(
    graphs: Graphs, batch: Batch, hooks: PlacedHooks, points: dict[str, HookPoint], use_error_term: bool
) -> dict[str, TensorValue]:
    """Run the SAE in stages, the hook functions called between them, and return the hooks that fire, in order.

    What a function returns at `hook_sae_input` reaches the next function and the result, and nothing else, as in the
    original; an edit in place changes the caller's array, as there. The error is that of the clean pass.

    Raises:
        InputError: a function returned something that is not an array of the tensor's shape and dtype.
    """
    fired: dict[str, TensorValue] = {}

    def fire(name: str, tensor: TensorValue) -> TensorValue:
        for where, function in hooks:
            if where == name:
                returned = function(tensor, hook=points[name])
                if returned is not None:
                    array = graphs.backend.move_to_device_of(graphs.backend.import_array(returned), tensor)
                    tensor = array if name == HOOK_INPUT else _checked(array, tensor, name)
        fired[name] = tensor
        return tensor

    fire(HOOK_INPUT, batch.given)
    features_hooked = any(name in FEATURE_HOOKS for name, _ in hooks)
    feeds = batch.feeds()
    clean = graphs.run(graphs.fitting(MODEL if use_error_term else ENCODE), feeds)

    acts_pre = fire(HOOK_ACTS_PRE, batch.shaped(HOOK_ACTS_PRE, clean[HOOK_ACTS_PRE]))
    acts_post = clean[HOOK_ACTS_POST]
    if any(name == HOOK_ACTS_PRE for name, _ in hooks):
        feeds[HOOK_ACTS_PRE] = batch.feature_rows(acts_pre)
        acts_post = graphs.run(graphs.fitting(ACTIVATE), feeds)[HOOK_ACTS_POST]
    acts_post = fire(HOOK_ACTS_POST, batch.shaped(HOOK_ACTS_POST, acts_post))

    if HOOK_RECONS in clean and not features_hooked:
        recons = clean[HOOK_RECONS]
    else:
        feeds[HOOK_ACTS_POST] = batch.feature_rows(acts_post)
        recons = graphs.run(graphs.fitting(DECODE), feeds)[HOOK_RECONS]
    recons = fire(HOOK_RECONS, batch.shaped(HOOK_RECONS, recons))

    if use_error_term:
        error = fire(HOOK_ERROR, batch.shaped(HOOK_ERROR, clean[HOOK_ERROR]))
        fire(HOOK_OUTPUT, graphs.backend.add(recons, error))
    else:
        fire(HOOK_OUTPUT, recons)  # the same array: editing the output in place edits the cached recons, as there
    return fired


def _checked(array: TensorValue, tensor: TensorValue, name: str) -> TensorValue:
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise InputError(
            f"The hook function at {name} returned {array.shape} {array.dtype}; it must return {tensor.shape} "
            f"{tensor.dtype}, or None to keep the tensor."
        )
    return array

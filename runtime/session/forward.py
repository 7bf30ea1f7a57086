"""The passes of an SAE: through one graph, or in stages with hook functions between them, with edited features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.tensor import Array, TensorValue
from ..artifact.contracts import ACTIVATE, DECODE
from ..artifact.names import (
    FEATURE_HOOKS,
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_RECONS,
    INDICES,
    INPUT,
    L0,
    VALUES,
)
from ..errors import InputError
from .batch import Batch, as_dtype, flat_shape
from .features import TopFeatures, strongest_features
from .graphs import Graphs
from .hooks import HookPoint, HookRegistry, PlacedHook
from .interventions import Intervention
from .selection import Selection


@dataclass(frozen=True, eq=False)
class SteeringHook:
    """An intervention of `steering`. A graph carries it out if it is the only one; if not, it is a hook function."""

    intervention: Intervention

    def __call__(self, acts_post: TensorValue, hook: object = None) -> Array:
        """Return the edited activations, a copy on the host."""
        return self.intervention(_on_host(acts_post), hook)


def compute(
    graphs: Graphs,
    batch: Batch,
    names: Sequence[str],
    intervention: Intervention | None = None,
) -> dict[str, TensorValue]:
    """Return the named hooks, in that order, computed by one graph."""
    if intervention is not None and not len(intervention.ids):
        intervention = None
    hooks: dict[str, TensorValue] = {HOOK_INPUT: batch.given}  # unchanged: in the original too it keeps its dtype
    feeds = batch.feeds()
    steered, in_numpy = intervention is not None, isinstance(batch.given, np.ndarray)
    choice = graphs.choose(names, steered=steered, in_numpy=in_numpy)
    if intervention is not None and choice.steers:
        feeds |= intervention.feeds(batch.lead, graphs.manifest.sae.dtype)
    if choice.graph is not None:
        hooks |= graphs.run(choice.graph, feeds, [name for name in dict.fromkeys(names) if name != HOOK_INPUT])
    tensors = {name: batch.shaped(name, hooks[name]) for name in names}
    acts_post = tensors.get(HOOK_ACTS_POST)
    if intervention is not None and not choice.steers and isinstance(acts_post, np.ndarray):
        tensors[HOOK_ACTS_POST] = intervention(acts_post)
    return tensors


def forward(
    graphs: Graphs,
    batch: Batch,
    names: Sequence[str],
    hooks: Sequence[PlacedHook],
    points: dict[str, HookPoint],
    use_error_term: bool | None = None,
) -> dict[str, TensorValue]:
    """Return the named hooks, in that order, of a pass with hook functions and interventions.

    Functions at `hook_sae_error` are called with the error term only, also if the names contain that hook.
    `use_error_term` replaces the setting of the SAE, which None keeps.
    """
    own = graphs.manifest.sae.use_error_term
    if use_error_term not in (None, own):
        fired = _run_in_stages(graphs, batch, hooks, points, names, not own)
        return {name: fired[name] for name in names}
    if not hooks:
        return compute(graphs, batch, names)
    interventions = [hook.function.intervention for hook in hooks if isinstance(hook.function, SteeringHook)]
    if len(interventions) == len(hooks):
        if len(hooks) == 1:
            return compute(graphs, batch, names, interventions[0])
        if set(names) <= {HOOK_INPUT, *FEATURE_HOOKS}:
            tensors = compute(graphs, batch, names)
            if HOOK_ACTS_POST in tensors:
                tensors[HOOK_ACTS_POST] = _edited(graphs, tensors[HOOK_ACTS_POST], interventions)
            return tensors
    fired = _run_in_stages(graphs, batch, hooks, points, names, own)
    return {name: fired[name] for name in names}


def encode(graphs: Graphs, batch: Batch, interventions: Sequence[Intervention] = ()) -> TensorValue:
    """Return the activations of the features, edited by the interventions one after the other."""
    return _edited(graphs, compute(graphs, batch, [HOOK_ACTS_POST])[HOOK_ACTS_POST], interventions)


def encode_selection(
    graphs: Graphs, batch: Batch, selection: Selection, interventions: Sequence[Intervention] = ()
) -> TensorValue:
    """Return the activations of some features, `(..., m)`, edited by the interventions one after the other."""
    values = graphs.run_selection(selection, batch.feeds()).reshape(*batch.lead, len(selection.ids))
    return _edited(graphs, values, [intervention.of_features(selection.ids) for intervention in interventions])


def active_interventions(hooks: HookRegistry) -> list[Intervention]:
    """Return the interventions of the `steering` blocks that the caller is in."""
    return [hook.function.intervention for hook in hooks.active() if isinstance(hook.function, SteeringHook)]


def top_features(graphs: Graphs, batch: Batch, k: int, interventions: Sequence[Intervention] = ()) -> TopFeatures[Any]:
    """Return the k strongest features of each token, of the edited activations if there are interventions."""
    if interventions:
        acts_post = compute(graphs, batch, [HOOK_ACTS_POST])[HOOK_ACTS_POST]
        found = strongest_features(_edited_on_host(acts_post, interventions), k)
        indices, values, l0 = (graphs.backend.move_to_device_of(array, acts_post) for array in found)
        return TopFeatures(indices, values, l0)
    outputs = graphs.find_strongest(batch.feeds(), k)
    indices, values = (outputs[name].reshape(*batch.lead, k) for name in (INDICES, VALUES))
    return TopFeatures(indices, values, outputs[L0].reshape(batch.lead))


def decode(graphs: Graphs, acts_post: Any, x: Any = None) -> TensorValue:
    """Return the reconstruction from activations; see `SAESession.decode`."""
    cfg = graphs.manifest.sae
    acts = as_dtype(graphs.backend.import_array(acts_post), cfg.dtype, "acts_post")
    lead = flat_shape(acts.shape, cfg.d_sae, what="acts_post")[:-1]
    feeds: dict[str, TensorValue] = {HOOK_ACTS_POST: acts.reshape(math.prod(lead), cfg.d_sae)}
    if INPUT in graphs.inputs(DECODE):
        batch = None if x is None else Batch.of(x, cfg, given=graphs.backend.import_array)
        if batch is None or batch.lead != lead:
            got = "no x" if batch is None else f"an x with the leading dimensions {batch.lead}"
            raise InputError(
                f"The decoder of this {cfg.architecture} SAE also reads the input, but {got} was given. Pass "
                f"decode(acts_post, x) with an x of shape {(*lead, cfg.d_in)}."
            )
        feeds |= batch.feeds()
    return graphs.decode(feeds).reshape(*lead, *cfg.output_shape)


def _on_host(tensor: TensorValue) -> Array:
    """Return a tensor as a numpy array; a tensor on a GPU is copied."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def _edited(graphs: Graphs, acts_post: TensorValue, interventions: Sequence[Intervention]) -> TensorValue:
    if not interventions:
        return acts_post
    return graphs.backend.move_to_device_of(_edited_on_host(acts_post, interventions), acts_post)


def _edited_on_host(acts_post: TensorValue, interventions: Sequence[Intervention]) -> Array:
    edited = _on_host(acts_post)
    for intervention in interventions:
        edited = intervention(edited)
    return edited


def _run_in_stages(
    graphs: Graphs,
    batch: Batch,
    hooks: Sequence[PlacedHook],
    points: dict[str, HookPoint],
    names: Sequence[str],
    use_error_term: bool,
) -> dict[str, TensorValue]:
    """Run the SAE in stages, call the hook functions between them, and return the tensors of the hooks, in order.

    The error is computed if it is one of the names or the error term is on.

    As in the original, an array that a function returns at `hook_sae_input` reaches only the next function and the
    result, and an edit in place changes the caller's array. The error is that of the clean pass.

    Raises:
        InputError: A function returned something that is not an array of the tensor's shape and dtype.
    """
    fired: dict[str, TensorValue] = {}
    with_error = use_error_term or HOOK_ERROR in names

    def fire(name: str, tensor: TensorValue) -> TensorValue:
        for hook in hooks:
            if hook.name == name:
                returned = call_hook(hook, tensor, points[name])
                if returned is not None:
                    array = graphs.backend.move_to_device_of(graphs.backend.import_array(returned), tensor)
                    if name != HOOK_INPUT:
                        check_returned(array, tensor, name)
                    tensor = array
        fired[name] = tensor
        return tensor

    fire(HOOK_INPUT, batch.given)
    hooked = {hook.name for hook in hooks}
    feeds = batch.feeds()
    needed = [*FEATURE_HOOKS, HOOK_RECONS, HOOK_ERROR] if with_error else FEATURE_HOOKS
    encoder = graphs.choose(needed, steered=False, in_numpy=True).graph
    assert encoder is not None
    clean = graphs.run(encoder, feeds, needed)

    acts_pre = fire(HOOK_ACTS_PRE, batch.shaped(HOOK_ACTS_PRE, clean[HOOK_ACTS_PRE]))
    acts_post = clean[HOOK_ACTS_POST]
    if HOOK_ACTS_PRE in hooked:
        feeds[HOOK_ACTS_PRE] = batch.feature_rows(acts_pre)
        acts_post = graphs.run(graphs.variant(ACTIVATE), feeds)[HOOK_ACTS_POST]
    acts_post = fire(HOOK_ACTS_POST, batch.shaped(HOOK_ACTS_POST, acts_post))

    if HOOK_RECONS in clean and hooked.isdisjoint(FEATURE_HOOKS):
        recons = clean[HOOK_RECONS]
    else:
        feeds[HOOK_ACTS_POST] = batch.feature_rows(acts_post)
        recons = graphs.decode(feeds)
    recons = fire(HOOK_RECONS, batch.shaped(HOOK_RECONS, recons))

    if with_error:
        fired[HOOK_ERROR] = batch.shaped(HOOK_ERROR, clean[HOOK_ERROR])
    if use_error_term:
        error = fire(HOOK_ERROR, fired[HOOK_ERROR])
        fire(HOOK_OUTPUT, graphs.backend.add(recons, error))
    else:
        fire(HOOK_OUTPUT, recons)  # the same array: as in PyTorch, editing the output in place edits recons
    return fired


def call_hook(hook: PlacedHook, tensor: TensorValue, point: HookPoint) -> Any:
    """Call a hook function. What it raises itself passes through.

    Raises:
        InputError: The function does not take a tensor and `hook`.
    """
    try:
        return hook.function(tensor, hook=point)
    except TypeError as error:
        # With a frame below this one, the function was entered, and the error is its own.
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        raise InputError(
            f"The function {hook.function!r} for {hook.name} was called as function(tensor, hook=point): {error}"
        ) from error


def check_returned(array: TensorValue, tensor: TensorValue, name: str) -> None:
    """Refuse what a hook function returned unless it can take the place of the tensor at its hook.

    Raises:
        InputError: It has another shape or dtype.
    """
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise InputError(
            f"The hook function at {name} returned {array.shape} {array.dtype}; it must return {tensor.shape} "
            f"{tensor.dtype}, or None to keep the tensor."
        )

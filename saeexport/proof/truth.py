"""Computes references: the hooks of the original in its own dtype, and the truth, the same weights in float64."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from runtime.arrays.dtypes import rounded
from runtime.arrays.tensor import Array
from runtime.artifact.budgets import MOST_OWN_ERROR
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT
from runtime.errors import ParityError
from runtime.parity.reference import Reference, SteeredReference, derive_outputs
from runtime.session.interventions import Intervention

from ..original.precision import InFloat64, InTF32
from ..original.running import all_hooks, dtype_of, edited_hooks
from .decisions import find_uncertain, follow_decisions, true_recons

EDITED_FEATURES = 8
"""Number of features that the intervention edits on which `steer.onnx` is proved: two for each kind of edit."""

OUTLIER = 8.0
"""Largest error of the original on a token, as a multiple of its median error plus one rounding. Cancellation makes it
larger on some tokens. They are left out, because the largest error sets the budget of all tokens. So are tokens whose
preactivations cancel to less than the median divided by this."""


def reference_of(sae: Any, activations: Array, target: Array | None = None) -> Reference:
    """Return the reference of an SAE: its hooks and the truth, on the tokens where the original is accurate enough.

    Args:
        sae: HookedSAE, or any HookedRootModule with the six hooks.
        activations: Inputs, `(tokens, d_in)` or `(tokens, n_heads, d_head)`, with values of the SAE's dtype.
        target: Activations that a transcoder with the error term predicts, `(tokens, d_out)`.

    Raises:
        ParityError: A value is not finite, or PyTorch is not accurate enough on most tokens.
    """
    original = all_hooks(sae, activations, target)
    with InFloat64():
        truth = _without_input(all_hooks(sae, activations, target))
    dtype = dtype_of(next(sae.parameters()))
    reference = Reference(original, truth, bool(sae.cfg.use_error_term), target, dtype)
    # The error of the preactivations tells which decisions matter, and these are needed to judge the other hooks.
    left_out = _implausible(reference, [HOOK_ACTS_PRE]) | _cancelled(reference)
    reference = follow_decisions(sae, _without(reference, left_out))
    return find_uncertain(sae, _without(reference, _implausible(reference, reference.truth)))


def _without(reference: Reference, left_out: Array) -> Reference:
    """Return the reference without the tokens in `left_out`, and count them."""
    if not left_out.any():
        return reference
    return dataclasses.replace(reference.subset(~left_out), left_out=reference.left_out + int(left_out.sum()))


def steered_reference_of(sae: Any, clean: Reference, intervention: Intervention) -> SteeredReference:
    """Return the reference of the same inputs under an intervention."""
    truth = steered_truth(sae, clean, intervention)
    steered = SteeredReference(
        edited_hooks(sae, clean.original, clean.target, intervention),
        truth,
        clean.use_error_term,
        clean.target,
        clean.dtype,
        clean=clean,
        intervention=intervention,
    )
    _implausible(steered, steered.truth)
    return steered


def steered_truth(sae: Any, clean: Reference, intervention: Intervention) -> dict[str, Array]:
    """Return the truth under an intervention, with the decisions of `clean`."""
    acts_post = intervention(clean.truth[HOOK_ACTS_POST])
    recons = true_recons(sae, clean, acts_post)
    return {
        **clean.truth,
        HOOK_ACTS_POST: acts_post,
        **derive_outputs(recons, clean.truth.get(HOOK_ERROR), clean.use_error_term),
    }


def run_in_tf32(sae: Any, steered: SteeredReference) -> SteeredReference:
    """Return the reference of the same inputs and edits with the original in TF32 arithmetic.

    In it the factors of float32 products are rounded to TF32, as some GPUs do. The truth has its decisions.
    """
    clean = steered.clean
    with InTF32():
        hooks = all_hooks(sae, clean.original[HOOK_INPUT], clean.target)
        edited = edited_hooks(sae, hooks, clean.target, steered.intervention)
    measured = follow_decisions(sae, dataclasses.replace(clean, original=hooks))
    truth = steered_truth(sae, measured, steered.intervention)
    return dataclasses.replace(steered, original=edited, truth=truth, clean=measured)


def for_tf32(sae: Any, steered: SteeredReference, measured: SteeredReference) -> SteeredReference:
    """Return the reference that an artifact is judged against on a GPU that rounds factors to TF32.

    Args:
        sae: The original.
        steered: The reference in float32, whose truth is kept.
        measured: What `run_in_tf32` returned, which gives the uncertain features and the budgets.
    """
    clean = find_uncertain(sae, steered.clean, measured.clean)
    return dataclasses.replace(
        steered, recorded=measured.budgets, clean=dataclasses.replace(clean, recorded=measured.clean.budgets)
    )


def typical_intervention(reference: Reference) -> Intervention:
    """Return an intervention with every kind of edit, on the features that are on most often and the one least often.

    The kinds alternate from token to token. Values have the size of the activations, so that each edit is visible in
    the reconstruction.
    """
    acts_post = reference.original[HOOK_ACTS_POST]
    on = (acts_post != 0).sum(axis=0)
    by_use = np.argsort(-on, kind="stable")
    most, rest = np.split(by_use, [EDITED_FEATURES - 1])
    ids = np.append(most, rest[-1:])
    size = np.array([acts_post[acts_post[:, j] != 0, j].mean() if on[j] else 1.0 for j in ids], acts_post.dtype)
    turn = np.arange(len(acts_post))[:, None] + np.arange(len(ids))
    kinds = np.array([(0, 0), (0, 1), (0.5, 0), (1, 1)])  # ablate, clamp, scale, add
    scale, shift = np.moveaxis(kinds[turn % len(kinds)], -1, 0)
    return Intervention(ids, scale, rounded(shift * size, reference.dtype))


def _without_input(hooks: dict[str, Array]) -> dict[str, Array]:
    return {hook: y for hook, y in hooks.items() if hook != HOOK_INPUT}


def _cancelled(reference: Reference) -> Array:
    """Tell for each token whether its preactivations are far smaller than what they were computed from.

    In an SAE with only a few features, the products cancel the biases now and then. Errors are measured relative to the
    preactivations, so these tokens have the largest errors in every program, and by chance the original's may be far
    smaller than those of a graph that is as exact. A token whose input is small does not count: not only its
    preactivations but also their ratio to the input must be `OUTLIER` times smaller than usual.
    """
    size = reference.token_scale(HOOK_ACTS_PRE)
    rows = reference.original[HOOK_INPUT].reshape(reference.tokens, -1).astype(np.float64)
    ratio = size / np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float64).tiny)
    cancelled: Array = (OUTLIER * size < np.median(size)) & (OUTLIER * ratio < np.median(ratio))
    return cancelled


def _implausible(reference: Reference, hooks: Collection[str]) -> Array:
    """Tell for each token whether the original is farther from the truth than rounding explains.

    Cancellation can cause this. Such a token proves little, and would widen the budget of all other tokens.

    Raises:
        ParityError: It is so on most tokens, so that it must have another cause.
    """
    most = MOST_OWN_ERROR[reference.dtype]
    own = {hook: reference.token_errors(hook, reference.original[hook]) for hook in hooks}
    if np.any([errors > most for errors in own.values()], axis=0).mean() > 0.5:
        worst = max(own, key=lambda hook: float(np.median(own[hook])))
        raise ParityError(
            f"{worst}: PyTorch's own error against the same weights in float64 is {np.median(own[worst]):.1e} in the "
            f"median; on most tokens it is more than the {most:.0e} that rounding explains. Is something in it random, "
            "or computed in lower precision?"
        )
    # Where no feature is on, acts_post has no error. With such tokens the median of an SAE with few features is 0, and
    # the tokens that are left would be those on which the original was exact by chance.
    typical = {hook: np.median(errors[errors > 0]) if errors.any() else 0.0 for hook, errors in own.items()}
    limits = {hook: min(most, OUTLIER * (typical[hook] + reference.floor(hook))) for hook in own}
    far: Array = np.any([errors > limits[hook] for hook, errors in own.items()], axis=0)
    return far

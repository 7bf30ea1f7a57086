"""Finds the decisions that depend on rounding, and makes the truth follow the decisions of the original.

`runtime.parity.decisions` explains how an artifact is judged where its decisions differ.
"""

import dataclasses
from typing import Any

import numpy as np

from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT, HOOK_RECONS
from runtime.parity.decisions import Stage, Stages
from runtime.parity.reference import Reference, derive_outputs

from ..original.precision import InFloat64
from ..original.running import evaluating, run_to_hook, to_inputs, to_numpy


def follow_decisions(sae: Any, reference: Reference) -> Reference:
    """Return a reference whose truth has the decisions of the original; `uncertain` tells where they differ."""
    original, truth = (hooks[HOOK_ACTS_POST] for hooks in (reference.original, reference.truth))
    differing = (original != 0) != (truth != 0)
    if not differing.any():
        return dataclasses.replace(reference, uncertain=None)
    decided = np.where(differing, original, truth)
    truths = {**reference.truth, HOOK_ACTS_POST: decided}
    moved = (np.abs(decided - truth) > reference.acts_pre_tolerance).any(axis=1)
    if moved.any():
        recons = truths[HOOK_RECONS].copy()
        recons[moved] = true_recons(sae, reference.subset(moved), decided[moved])
        error = reference.error_target.astype(np.float64) - recons if HOOK_ERROR in truths else None
        truths.update(derive_outputs(recons, error, reference.use_error_term))
    return dataclasses.replace(reference, truth=truths, uncertain=differing)


def find_uncertain(sae: Any, reference: Reference, in_precision: Reference | None = None) -> Reference:
    """Return a reference with its uncertain features, as the method `undetermined` of the original's class tells them.

    Args:
        sae: The original.
        reference: Reference that `follow_decisions` returned.
        in_precision: Reference of the same inputs in the precision in which an artifact may run, such as TF32; None
            for the precision of `reference`.
    """
    measured = reference if in_precision is None else in_precision
    with InFloat64(), evaluating(sae):
        given = (reference.original[HOOK_ACTS_PRE], reference.original[HOOK_ACTS_POST], measured.acts_pre_tolerance)
        found = sae.undetermined(*to_inputs(sae, *given)) if hasattr(sae, "undetermined") else None
    if found is None:
        return dataclasses.replace(reference, uncertain=None)
    uncertain = to_numpy(found)
    if getattr(sae, "features_compete", False):
        return dataclasses.replace(reference, uncertain=uncertain)
    # A decision is uncertain in any case if the original itself, in either precision, differs from the truth alone.
    differing = measured.is_uncertain
    on, on_there = (each.truth[HOOK_ACTS_POST] != 0 for each in (reference, measured))
    return dataclasses.replace(
        reference, uncertain=uncertain | differing | (on != on_there), flips=differing.sum(axis=1)
    )


def stages_of(sae: Any, reference: Reference) -> Stages:
    """Return functions that run the stages of the original in its own dtype, on the inputs of a reference."""

    def stage(given: str, wanted: str) -> Stage:
        def run(tokens: Array, values: Array) -> Array:
            part = reference.subset(tokens)
            return run_to_hook(sae, [part.original[HOOK_INPUT], part.target], wanted, given, values)

        return run

    return Stages(stage(HOOK_ACTS_PRE, HOOK_ACTS_POST), stage(HOOK_ACTS_POST, HOOK_RECONS))


def true_recons(sae: Any, reference: Reference, acts_post: Array) -> Array:
    """Return the reconstruction in float64 from activations, `(tokens, d_sae)`, for the inputs of a reference."""
    with InFloat64():
        return run_to_hook(
            sae, [reference.original[HOOK_INPUT], reference.target], HOOK_RECONS, HOOK_ACTS_POST, acts_post
        )

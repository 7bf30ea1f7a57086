"""Finds the decisions that depend on rounding, and makes the truth follow the decisions of the original.

`runtime.parity.decisions` explains how an artifact is judged where its decisions differ.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_RECONS
from runtime.errors import ExportError
from runtime.parity.decisions import Stage, Stages
from runtime.parity.reference import Reference

from ..original.precision import InFloat64
from ..original.running import evaluating, run_to_hook, to_inputs, to_numpy


def follow_decisions(sae: Any, reference: Reference) -> Reference:
    """Return a reference whose truth has the decisions of the original; `flips` counts where it decides otherwise."""
    original, truth = (hooks[HOOK_ACTS_POST] for hooks in (reference.original, reference.truth))
    differing = (original != 0) != (truth != 0)
    decided = np.where(differing, original, truth)
    truths = {**reference.truth, HOOK_ACTS_POST: decided}
    moved = (np.abs(decided - truth) > reference.acts_pre_tolerance).any(axis=1)
    if moved.any():
        truths |= reference.replace_recons(moved, true_recons(sae, reference.subset(moved), decided[moved]))
    return dataclasses.replace(reference, truth=truths, flips=differing.sum(axis=1))


def find_uncertain(sae: Any, reference: Reference, in_precision: Reference | None = None) -> Reference:
    """Return a reference with its uncertain features, as the method `undetermined` of the original's class tells them.

    Args:
        sae: The original.
        reference: Reference that `follow_decisions` returned.
        in_precision: Reference of the same inputs in the precision in which an artifact may run, such as TF32; None
            for the precision of `reference`.

    Raises:
        ExportError: The method returns something else than it should.
    """
    measured = reference if in_precision is None else in_precision
    with InFloat64(), evaluating(sae):
        values = (reference.original[HOOK_ACTS_PRE], reference.original[HOOK_ACTS_POST], measured.acts_pre_tolerance)
        given = [array.copy() for array in values]  # the method may compute in place
        try:
            found = sae.undetermined(*to_inputs(sae, *given)) if hasattr(sae, "undetermined") else None
        except Exception as error:
            name = f"{type(sae).__name__}.undetermined"
            raise ExportError(f"{name} fails on the activations: {type(error).__name__}: {error}") from error
    shape = reference.original[HOOK_ACTS_PRE].shape
    if found is not None and not (isinstance(found, Tensor) and found.dtype == torch.bool and found.shape == shape):
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ExportError(
            f"{type(sae).__name__}.undetermined returned {what} for acts_pre of shape {list(shape)}; it must return a "
            "bool for each of them, or None."
        )
    counted = found is not None and not getattr(sae, "features_compete", False)
    return dataclasses.replace(
        reference,
        uncertain=None if found is None else to_numpy(found),
        flips=measured.flips if counted else None,
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

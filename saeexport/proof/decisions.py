"""Finds the decisions that depend on rounding, and makes the truth follow the decisions of the original.

`runtime.parity.decisions` explains how an artifact is judged where its decisions differ.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT, HOOK_RECONS
from runtime.parity.decisions import Stage, Stages
from runtime.parity.reference import Reference, derive_outputs

from ..original.architectures import ARCHITECTURES
from ..original.hooked_sae import HookedSAE
from ..original.precision import InFloat64
from ..original.running import evaluating, run_to_hook, to_inputs, to_numpy

TIE_BREAK_EPS = 2.0**-30
"""Relative change of a preactivation that breaks a tie with equal ones; it is less than a rounding of float32."""

DRAWS = 8
"""Number of random directions in which the input is moved, each forwards and backwards. In each a gate moves by a
normal deviate times the step. The chance that all eight moves stay below a quarter of the step, which is half of the
largest error, is 2 in 10^6."""

STEP = 1e-6
"""Distance, as a fraction of the input's norm, of the move in float64 that measures how far the preactivations move."""


def follow_decisions(sae: Any, reference: Reference) -> Reference:
    """Return a reference whose truth has the decisions of the original; `alternative_acts` keeps those of the truth."""
    original, truth = (hooks[HOOK_ACTS_POST] for hooks in (reference.original, reference.truth))
    otherwise = (original != 0) != (truth != 0)
    if not otherwise.any():
        return dataclasses.replace(reference, alternative_acts=None)
    decided = np.where(otherwise, original, truth)
    truths = {**reference.truth, HOOK_ACTS_POST: decided}
    moved = (np.abs(decided - truth) > reference.acts_pre_tolerance).any(axis=1)
    if moved.any():
        recons = truths[HOOK_RECONS].copy()
        recons[moved] = true_recons(sae, reference.subset(moved), decided[moved])
        error = reference.error_target.astype(np.float64) - recons if HOOK_ERROR in truths else None
        truths.update(derive_outputs(recons, error, reference.use_error_term))
    return dataclasses.replace(reference, truth=truths, alternative_acts=truth)


def find_uncertain(sae: Any, reference: Reference, in_precision: Reference | None = None) -> Reference:
    """Return a reference with its uncertain features in `alternative_acts`.

    Args:
        sae: The original.
        reference: Reference that `follow_decisions` returned.
        in_precision: Reference of the same inputs in the precision in which an artifact may run, such as TF32; None
            for the precision of `reference`.
    """
    measured = reference if in_precision is None else in_precision
    truth = reference.truth[HOOK_ACTS_POST]
    other, flips = truth.copy(), None

    def note(tokens: Array, acts_post: Array) -> None:
        flipped = (acts_post != 0) != (truth[tokens] != 0)
        other[tokens] = np.where(flipped, acts_post, other[tokens])

    if not _is_relu(sae):  # ReLU is continuous: a feature at its threshold changes nothing
        for tokens, acts_post in _ties(sae, reference):
            note(tokens, acts_post)
        if _reads_the_input(sae, measured):
            flips = np.zeros(reference.tokens, np.int64)
            all_tokens = np.ones(reference.tokens, bool)
            for acts_post in _gates(sae, measured):
                note(all_tokens, acts_post)
            if measured.alternative_acts is not None:  # uncertain whether the search found them or not
                for acts_post in (measured.truth[HOOK_ACTS_POST], measured.alternative_acts):
                    note(all_tokens, acts_post)
                flips += ((measured.alternative_acts != 0) != (measured.truth[HOOK_ACTS_POST] != 0)).sum(axis=1)
    return dataclasses.replace(reference, alternative_acts=other if (other != truth).any() else None, flips=flips)


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


def _ties(sae: Any, reference: Reference) -> Iterator[tuple[Array, Array]]:
    """Yield tokens with features that tie for the last place, and float64 activations in which other features win.

    Ties are those of the original's preactivations, because `activate` is judged on these.
    """
    pre, on = reference.original[HOOK_ACTS_PRE].astype(np.float64), reference.original[HOOK_ACTS_POST] != 0
    tied = np.array([_equals_another(size, of_token) for size, of_token in zip(np.abs(pre), on, strict=True)])
    outwards = np.where(on, -1.0, 1.0)

    def activations(tokens: Array, which: Array) -> Array:
        part = reference.subset(tokens)
        nudged = pre[tokens] * (1 + TIE_BREAK_EPS * np.where(which[tokens], outwards[tokens], 0.0))
        return _activations(sae, part, part.original[HOOK_INPUT].astype(np.float64), nudged)

    tokens = np.asarray(tied.any(axis=1))
    if not tokens.any():
        return
    before, after = (activations(tokens, which) != 0 for which in (np.zeros_like(tied), tied))
    for token, was, now in zip(np.flatnonzero(tokens), before, after, strict=True):
        lost, won = (np.abs(pre[token])[tied[token] & which] for which in (was & ~now, now & ~was))
        tied[token] &= np.isin(np.abs(pre[token]), np.intersect1d(lost, won))  # drop ties that do not decide who is on
    tokens = np.asarray(tied.any(axis=1))
    places = np.where(on, np.cumsum(tied & on, axis=1), np.cumsum(tied & ~on, axis=1)) * tied
    for turn in range(1, int(places[tokens].max(initial=0)) + 1):  # each tied feature wins or loses once
        yield tokens, activations(tokens, places == turn)


def _equals_another(size: Array, on: Array) -> Array:
    """Tell for each feature of a token whether an equally large feature has the opposite state, on or off."""
    sizes = np.unique(size[on])
    if not len(sizes):
        return np.zeros_like(on)
    off = ~on & (sizes[np.searchsorted(sizes, size).clip(max=len(sizes) - 1)] == size) & (size > 0)
    return off | (on & np.isin(size, size[off]))


def _reads_the_input(sae: Any, reference: Reference) -> bool:
    """Tell whether the activation function reads the input in addition to acts_pre, as a gate does."""
    x, acts_pre = reference.original[HOOK_INPUT].astype(np.float64), reference.truth[HOOK_ACTS_PRE]
    other = x * np.random.default_rng(0).uniform(-2.0, 2.0, x.shape)
    acts_post, with_other = (_activations(sae, reference, given, acts_pre) for given in (x, other))
    return not np.array_equal(acts_post, with_other)


def _gates(sae: Any, reference: Reference) -> Iterator[Array]:
    """Yield activations in float64 with the input moved and acts_pre unchanged, which flips gates near a threshold.

    The input moves so far that acts_pre moves, on average over the features, by half of its tolerance. That half is
    twice the largest error of the original.
    """
    x, acts_pre = reference.original[HOOK_INPUT].astype(np.float64), reference.truth[HOOK_ACTS_PRE]
    draws = np.random.default_rng(0)
    rows, tolerance = tuple(range(1, x.ndim)), reference.acts_pre_tolerance
    for _ in range(DRAWS):
        direction = draws.standard_normal(x.shape)
        size = np.linalg.norm(x, axis=rows, keepdims=True) / np.linalg.norm(direction, axis=rows, keepdims=True)
        direction *= STEP * np.where(size > 0, size, 1.0)
        with InFloat64():
            response = run_to_hook(sae, [x + direction, reference.target], HOOK_ACTS_PRE) - acts_pre
        # The response in units of each feature's tolerance, averaged over the features.
        moved = np.sqrt(np.mean((response / np.where(tolerance > 0, tolerance, np.inf)) ** 2, axis=1))
        length = (0.5 / np.where(moved > 0, moved, np.inf)).reshape(-1, *[1] * len(rows))
        for sign in (1.0, -1.0):
            yield _activations(sae, reference, x + sign * length * direction, acts_pre)


def _is_relu(sae: Any) -> bool:
    return type(sae) in ARCHITECTURES.values() and type(sae).activation is HookedSAE.activation


def _activations(sae: Any, reference: Reference, x: Array, acts_pre: Array) -> Array:
    """Return `acts_post` in float64 for an input whose preactivations are replaced by `acts_pre`."""
    with InFloat64():
        if isinstance(sae, HookedSAE) and type(sae).run is HookedSAE.run:  # skips the encoder
            with evaluating(sae):
                source, pre = to_inputs(sae, x, acts_pre)
                return to_numpy(sae.activation(pre, sae.flatten(source)))
        return run_to_hook(sae, [x, reference.target], HOOK_ACTS_POST, HOOK_ACTS_PRE, acts_pre)

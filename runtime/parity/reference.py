"""How closeness is judged: the one place that says what "nothing changed" means.

Truth is the same weights evaluated in float64. The error of a tensor `y` at a hook is measured twice, against the size
`s` of the numbers that it was computed from:

    token   = max over tokens   of  ||y - truth|| / s
    element = max over elements of  |y - truth| * sqrt(width) / s

    s = ||acts_pre||            for hook_sae_acts_pre and hook_sae_acts_post
    s = ||input|| + ||recons||  for hook_sae_recons, hook_sae_error and hook_sae_output

(`input` is the target where a transcoder's error is taken against one.) A preactivation of more than `OUTLYING` times
the median, such as that of a feature which is switched off by a bias of -1e9, does not make room for the others: in the
norm it counts as much as that, and its own error is measured against its own size.

A ReLU cuts and an error term cancels, so that a tensor's own norm can be arbitrarily small, even zero, while its
rounding errors are not; the norms above are of what goes in. `token` sees an error that is spread (a product of lower
precision), `element` one that is concentrated (one wrong weight).

A feature near a threshold is on in one correct program and off in another: `runtime.parity.decisions` says what is
right there.

The budget is calibrated by the PyTorch original's own error, measured in the same way, in the same dtype, on the same
inputs: `budget = FACTOR * original + FLOOR[dtype] * roundings`, the last as `Reference.floor` counts them. So one rule
serves every size, dtype and device.

Under an intervention on features the reconstruction is the clean one plus an update, so that `s` and the original's own
error are those of both passes: `s = ||input|| + ||recons|| + ||clean recons||`, and `original` the larger of the two.
An edit that ablates every feature leaves `b_dec`, which the original has without any error, and the update as what
remains of two large numbers. And the sum of two rounded numbers is rounded once more, for which the floor has a unit.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ..arrays.tensor import Array
from ..artifact.manifest import Errors
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
from ..errors import ParityError
from ..session.interventions import Intervention

FACTOR = 4.0
"""Two correct programs that add the same products in another order have errors that differ by a factor. The largest one
that `python -m benchmarks.losses.parity` sees over sizes, sparsities, architectures and numbers of tokens is 2.2
(benchmarks/results), and in half precision 1.2; the rest is for processors and GPUs that add in yet other orders."""

FLOOR = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}
"""Half a unit in the last place, of the 24, 11 and 8 bits of a dtype's numbers: what one correct rounding of the result
costs, where the original happens to be exact. A dtype without a row cannot be judged: truth itself is in float64."""

OUTLYING = 32
"""How much larger than the median of a token a preactivation is ordinarily not."""

ALLOWED_CHANCE_FLIPS = 8
"""How many decisions of a gate may be others where the original, as it happens, decides as the truth."""

COMPUTED_HOOKS = HOOK_NAMES[1:]

Hooks: TypeAlias = Mapping[str, Array]
Budgets: TypeAlias = Mapping[str, Errors]


@dataclass(frozen=True)
class Reference:
    """What an artifact is judged against, on a batch of inputs.

    Attributes:
        original: the hooks as PyTorch computed them, in the SAE's dtype, `(tokens, ...)`: all six, the error even where
            it does not fire; of a transcoder without the error term, the five that fire. Those of bfloat16, which numpy
            has not, are float32 arrays.
        truth: the same without the input, in float64, after the original's decisions.
        use_error_term: whether the output is to be the reconstruction plus the error.
        target: of a transcoder with the error term, what the error is taken against.
        dtype: of the SAE.
        recorded: budgets that were measured before, on this batch or a larger one; None measures them.
        left_out: how many tokens are not among them because the original itself is not exact there.
        rounded: whether the artifact's weights are of less precision, so that it may switch other features on.
        alternative_acts: acts_post, in float64, where each uncertain feature decides otherwise, and elsewhere as
            `truth`; None if none is uncertain.
        flips: where the activation function reads the input: of how many features the original decides otherwise than
            the truth by itself would, of each token, `(tokens,)`; else None, and what is uncertain are ties.
        diverging_tokens: on which tokens a graph decided otherwise, `(tokens,)`; see `runtime.parity.decisions`.
    """

    original: Hooks
    truth: Hooks
    use_error_term: bool
    target: Array | None = None
    dtype: str = FLOAT32
    recorded: Budgets | None = None
    left_out: int = 0
    rounded: bool = False
    alternative_acts: Array | None = None
    flips: Array | None = None
    diverging_tokens: Array | None = None

    def __post_init__(self) -> None:
        for name, array in {**self.original, **{f"truth of {k}": v for k, v in self.truth.items()}}.items():
            if not np.isfinite(array).all():
                index = index_of(int(np.argmin(np.isfinite(array))), array.shape)
                why = "Look for it in the activations (a token of zeros has no norm to divide by) and in the weights."
                if self.dtype == FLOAT16:
                    why = "float16 ends at 65504, and some number is larger: take bfloat16, or float32."
                raise ParityError(f"{name} is {array[index]} at {list(index)}: parity is judged on finite numbers "
                                  f"only. {why}")  # fmt: skip

    @property
    def tokens(self) -> int:
        """How many inputs there are."""
        return len(self.original[HOOK_INPUT])

    def subset(self, tokens: Array) -> "Reference":
        """Return the reference of some of the tokens."""

        def part(hooks: Hooks) -> dict[str, Array]:
            return {hook: y[tokens] for hook, y in hooks.items()}

        original, truth = part(self.original), part(self.truth)
        target, other, flips = (
            None if array is None else array[tokens] for array in (self.target, self.alternative_acts, self.flips)
        )
        return dataclasses.replace(
            self, original=original, truth=truth, target=target, alternative_acts=other, flips=flips
        )

    @property
    def error_target(self) -> Array:
        """What the error is taken against: the input, or the target."""
        return self.original[HOOK_INPUT] if self.target is None else self.target

    @cached_property
    def is_uncertain(self) -> Array:
        """Tell of each feature of each token whether both decisions about it are right, `(tokens, d_sae)`."""
        truth = self.truth[HOOK_ACTS_POST]
        return np.zeros(truth.shape, bool) if self.alternative_acts is None else self.alternative_acts != truth

    @property
    def support_is_free(self) -> Array:
        """Tell of each feature of each token whether it is no matter if it is on or off, only how much."""
        return np.zeros(self.truth[HOOK_ACTS_POST].shape, bool)

    @property
    def acts_pre_tolerance(self) -> Array:
        """How far each preactivation may be from the truth, `(tokens, d_sae)`."""
        return self.budget(HOOK_ACTS_PRE).element * self.scale(HOOK_ACTS_PRE)

    @property
    def n_flipped(self) -> int:
        """How many uncertain features a graph decided otherwise than the original."""
        on, was_on = self.truth[HOOK_ACTS_POST] != 0, self.original[HOOK_ACTS_POST] != 0
        return int((self.is_uncertain & (on != was_on)).sum())

    @property
    def max_flipped(self) -> float:
        """The most of them that rounding explains."""
        return math.inf if self.flips is None else FACTOR * int(self.flips.sum()) + ALLOWED_CHANCE_FLIPS

    def with_truth(self, truth: Hooks, **more: Any) -> "Reference":
        """Return the reference with another truth of some hooks, held to the same budgets."""
        return dataclasses.replace(self, truth={**self.truth, **truth}, recorded=self.budgets, **more)

    @cached_property
    def budgets(self) -> Budgets:
        """The most that each computed hook may err."""
        return {hook: self.budget(hook) for hook in self.truth} if self.recorded is None else self.recorded

    def budget(self, hook: str) -> Errors:
        """Return the most that a hook may err."""
        if self.recorded is not None:
            return self.recorded[hook]
        own, floor = self.own_errors(hook), self.floor(hook)
        return Errors(FACTOR * own.token + floor, FACTOR * own.element + floor)

    def scale(self, hook: str) -> Array:
        """Return `s / sqrt(width)` of the module's docstring, `(tokens, 1)`, or for features `(tokens, d_sae)`."""
        if hook in FEATURE_HOOKS:
            return self._sizes
        return _sizes(self.error_target) + _sizes(self.truth[HOOK_RECONS])

    @cached_property
    def _sizes(self) -> Array:
        size = np.abs(self.truth[HOOK_ACTS_PRE])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a token without any
            median = np.nanmedian(np.where(size > 0, size, np.nan), axis=1, keepdims=True)
        return np.maximum(_sizes(np.minimum(size, OUTLYING * np.nan_to_num(median))), size / OUTLYING)

    def own_errors(self, hook: str) -> Errors:
        """Return the original's own errors, by which the budget is calibrated."""
        return self.errors(hook, self.original[hook])

    def floor(self, hook: str) -> float:
        """Return the error that is allowed where the original happens to be exact: the roundings of the result.

        Of the error and of the output they are two: `input - recons` is rounded, and what goes into it or comes of it.
        """
        return FLOOR[self.dtype] * (2 if hook in (HOOK_ERROR, HOOK_OUTPUT) else 1)

    def errors(self, hook: str, y: Array) -> Errors:
        """Return how far `y` is from the truth of `hook`."""
        token, element = self._error_arrays(hook, y)
        return Errors(float(token.max(initial=0.0)), float(element.max(initial=0.0)))

    def token_errors(self, hook: str, y: Array) -> Array:
        """Return how far each token of `y` is from the truth of `hook`, `(tokens,)`."""
        return self._error_arrays(hook, y)[0]

    def worst(self, hook: str, y: Array) -> tuple[int, ...]:
        """Return the index of the element of `y` that is farthest from the truth."""
        _, element = self._error_arrays(hook, y)
        return index_of(int(np.argmax(element)), y.shape)

    def _error_arrays(self, hook: str, y: Array) -> tuple[Array, Array]:
        difference = np.abs(_rows(y).astype(np.float64) - _rows(self.truth[hook]))
        with np.errstate(divide="ignore", invalid="ignore"):  # of no size at all, nothing but the truth will do
            element = np.nan_to_num(difference / self.scale(hook), nan=0.0, posinf=np.inf)
        return _sizes(element)[:, 0], element


@dataclass(frozen=True)
class SteeredReference(Reference):
    """What an artifact is judged against under an intervention on features.

    Attributes:
        clean: the reference of the same inputs without it.
        intervention: the edits that the original was run with.
    """

    clean: Reference = field(kw_only=True)
    intervention: Intervention = field(kw_only=True)

    def subset(self, tokens: Array) -> "SteeredReference":
        """Return the reference of some of the tokens."""
        part, edits = cast(SteeredReference, super().subset(tokens)), self.intervention
        scale, shift = (
            values[tokens] if values.ndim > 1 and len(values) > 1 else values for values in (edits.scale, edits.shift)
        )
        return dataclasses.replace(
            part, clean=self.clean.subset(tokens), intervention=Intervention(edits.ids, scale, shift)
        )

    @property
    def support_is_free(self) -> Array:
        """Tell likewise: what is added can cancel exactly, or not, and what is scaled can vanish."""
        scale, shift = self.intervention.scale, self.intervention.shift
        computed = (scale != 0) & ((scale != 1) | (shift != 0))
        free = super().support_is_free
        free[:, self.intervention.ids] |= np.atleast_2d(computed)
        return free

    def scale(self, hook: str) -> Array:
        """Return `s / sqrt(width)` of the module's docstring, `(tokens, 1)`, or for features `(tokens, d_sae)`."""
        own = super().scale(hook)
        return own if hook in FEATURE_HOOKS else own + _sizes(self.clean.truth[HOOK_RECONS])

    def own_errors(self, hook: str) -> Errors:
        """Return the larger of the original's own errors in the two passes."""
        steered, clean = super().own_errors(hook), self.clean.own_errors(hook)
        return Errors(max(steered.token, clean.token), max(steered.element, clean.element))

    def floor(self, hook: str) -> float:
        """Return the error that is allowed where the original happens to be exact: an update is rounded once more."""
        return super().floor(hook) + (FLOOR[self.dtype] if hook in (HOOK_RECONS, HOOK_OUTPUT) else 0.0)


def behind(recons: Array, error: Array | None, use_error_term: bool) -> dict[str, Array]:
    """Return the hooks behind the activations: the reconstruction, the error if there is one, and the output."""
    if error is None:
        return {HOOK_RECONS: recons, HOOK_OUTPUT: recons}
    return {HOOK_RECONS: recons, HOOK_ERROR: error, HOOK_OUTPUT: recons + error if use_error_term else recons}


def _rows(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _sizes(array: Array) -> Array:
    """Return the norm of each token over the square root of its width, `(tokens, 1)` float64."""
    rows = _rows(array).astype(np.float64)
    return np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(rows.shape[1])


def index_of(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of the number that is in place `flat` of an array."""
    return tuple(int(i) for i in np.unravel_index(flat, shape))

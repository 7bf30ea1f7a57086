"""The truth, errors and budgets of the parity rule, which is `docs/parity.md`, for the tokens of a batch.

The truth is what the same weights give in float64, with the original's decisions. With `rms` for the root of the mean
square over the elements of one token, all of them of the truth:

    token error   = max over tokens   of rms(y - truth) / s
    element error = max over elements of |y - truth| / s
    s             = rms(acts_pre)              for hook_sae_acts_pre and hook_sae_acts_post
                    rms(input) + rms(recons)   for hook_sae_recons, hook_sae_error and hook_sae_output
    budget        = FACTOR * error of the original + number of roundings * FLOOR[dtype]
    tolerance     = element budget of acts_pre * s

`input` stands for the target of a transcoder with the error term. In rms(acts_pre) no feature counts as more than
`OUTLIER_RATIO` times the median of those that are not 0, and the `s` of a feature is at least its own acts_pre divided
by `OUTLIER_RATIO`. `runtime.artifact.budgets` has the other constants, and counts the roundings.

In half precision each column is judged as well, a feature of acts_pre or a dimension of the recons of `decode`:

    column error  = root of the mean over tokens of ((y - truth) / s)^2
    column budget = the larger one of FACTOR * column error of the original, and that of one rounding of the truth

Under an intervention `s = rms(input) + rms(recons) + rms(recons of the clean pass)`, the error of the original is the
larger one of both passes, and recons and output have one rounding more.

`runtime.parity.decisions` has the rule for features that are on in one correct program and off in another.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np

from ..arrays.dtypes import FLOAT16, FLOAT32
from ..arrays.tensor import Array
from ..artifact.budgets import (
    FACTOR,
    FLOOR,
    MIN_COLUMN_TOKENS,
    budget_of,
    count_roundings,
    larger_errors,
)
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

OUTLIER_RATIO = 32
"""Multiple of its token's median above which a preactivation counts as an outlier."""

ALLOWED_CHANCE_FLIPS = 8
"""Number of gate decisions that may differ even if the original, by chance, decides everything as the truth does. It
matters in float32, where the original decides 0 to 2 of four million gates otherwise (`benchmarks.losses.gates`)."""

COMPUTED_HOOKS = HOOK_NAMES[1:]

Hooks: TypeAlias = Mapping[str, Array]
Budgets: TypeAlias = Mapping[str, Errors]


@dataclass(frozen=True)
class Reference:
    """What an artifact is judged against on a batch: the values of the original, the truth, and the budgets.

    Attributes:
        original: The hooks as PyTorch computed them in the SAE's dtype, `(tokens, ...)`. They include the error even if
            its hook does not fire, except for a transcoder without the error term, which has none. Values of bfloat16
            are stored in float32 arrays, because NumPy has no bfloat16.
        truth: The computed hooks in float64, with the decisions of the original.
        use_error_term: Whether the output is the reconstruction plus the error.
        target: The activation that a transcoder with the error term predicts; None for every other SAE.
        dtype: The SAE's dtype.
        recorded: Budgets that were measured before, on this batch or on a larger one; None measures them.
        left_out: Number of tokens that are not in this batch because the original itself is inexact on them.
        rounded: Whether the artifact's weights have lower precision, so that other features may be on.
        uncertain: Whether both decisions about a feature are correct, `(tokens, d_sae)`; None if no feature is
            uncertain.
        flips: Number of features per token that the original decides differently from the truth alone, `(tokens,)`.
            It is given if the uncertain features are those with a gate near its threshold. None means that they are
            exact ties.
        diverging_tokens: Whether a graph decided differently from the original on a token, `(tokens,)`; set by
            `runtime.parity.decisions.follow_graph`.

    Raises:
        ParityError: A value of `original` or `truth` is not finite.
    """

    original: Hooks
    truth: Hooks
    use_error_term: bool
    target: Array | None = None
    dtype: str = FLOAT32
    recorded: Budgets | None = None
    left_out: int = 0
    rounded: bool = False
    uncertain: Array | None = None
    flips: Array | None = None
    diverging_tokens: Array | None = None

    def __post_init__(self) -> None:
        for name, array in {**self.original, **{f"truth of {k}": v for k, v in self.truth.items()}}.items():
            if not np.isfinite(array).all():
                index = index_of(int(np.argmin(np.isfinite(array))), array.shape)
                advice = "Check the activations (a token of zeros has no norm to divide by) and the weights."
                if self.dtype == FLOAT16:
                    advice = "float16 ends at 65504, and this value is larger: take bfloat16, or float32."
                raise ParityError(
                    f"{name} is {array[index]} at {list(index)}: parity is judged on finite values only. {advice}"
                )

    @property
    def is_steered(self) -> bool:
        """Whether this is the reference under an intervention."""
        return False

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.original[HOOK_INPUT])

    def subset(self, tokens: Array) -> "Reference":
        """Return the reference of some of the tokens, given by a mask or by indices."""

        def select(hooks: Hooks) -> dict[str, Array]:
            return {hook: y[tokens] for hook, y in hooks.items()}

        original, truth = select(self.original), select(self.truth)
        target, uncertain, flips = (
            None if array is None else array[tokens] for array in (self.target, self.uncertain, self.flips)
        )
        return dataclasses.replace(
            self, original=original, truth=truth, target=target, uncertain=uncertain, flips=flips
        )

    @property
    def error_target(self) -> Array:
        """The activation that the error is taken against: the input, or the target of a transcoder."""
        return self.original[HOOK_INPUT] if self.target is None else self.target

    @cached_property
    def is_uncertain(self) -> Array:
        """`uncertain`, with a value for every feature in any case."""
        return np.zeros(self.truth[HOOK_ACTS_POST].shape, bool) if self.uncertain is None else self.uncertain

    @property
    def support_is_free(self) -> Array:
        """Whether a feature's activation is judged by its size only, be it on or off, `(tokens, d_sae)`."""
        return np.zeros(self.truth[HOOK_ACTS_POST].shape, bool)

    @cached_property
    def acts_pre_tolerance(self) -> Array:
        """How far each preactivation may be from the truth, `(tokens, d_sae)`."""
        return self.budget(HOOK_ACTS_PRE).element * self.scale(HOOK_ACTS_PRE)

    @property
    def n_flipped(self) -> int:
        """Number of uncertain features about which `truth` and the original decide differently."""
        on, was_on = self.truth[HOOK_ACTS_POST] != 0, self.original[HOOK_ACTS_POST] != 0
        return int((self.is_uncertain & (on != was_on)).sum())

    @property
    def max_flipped(self) -> float:
        """Largest `n_flipped` that rounding explains."""
        return math.inf if self.flips is None else FACTOR * int(self.flips.sum()) + ALLOWED_CHANCE_FLIPS

    def replace_recons(self, tokens: Array, recons: Array) -> dict[str, Array]:
        """Return the truth of the hooks after the activations with another reconstruction of some tokens.

        Args:
            tokens: Which tokens, `(tokens,)` bool.
            recons: Their reconstruction, `(number of them, ...)`.
        """
        replaced = self.truth[HOOK_RECONS].copy()
        replaced[tokens] = recons
        error = self.error_target.astype(np.float64) - replaced if HOOK_ERROR in self.truth else None
        return derive_outputs(replaced, error, self.use_error_term)

    def with_truth(self, truth: Hooks, **more: Any) -> "Reference":
        """Return the reference with the truth of some hooks after acts_pre replaced, and with the same budgets."""
        changed = dataclasses.replace(self, truth={**self.truth, **truth}, recorded=self.budgets, **more)
        changed.__dict__["_sizes_of_features"] = self._sizes_of_features  # of acts_pre, and slow to compute
        return changed

    @cached_property
    def budgets(self) -> Budgets:
        """The largest errors that each computed hook may have."""
        return {hook: self.budget(hook) for hook in self.truth} if self.recorded is None else self.recorded

    def budget(self, hook: str) -> Errors:
        """Return the largest errors that a hook may have."""
        if self.recorded is not None:
            return self.recorded[hook]
        return budget_of(self.own_errors(hook), hook, self.dtype, self.is_steered)

    def scale(self, hook: str) -> Array:
        """Return `s` of the module's docstring, `(tokens, 1)`, or `(tokens, d_sae)` for features."""
        if hook in FEATURE_HOOKS:
            return self._sizes_of_features[1]
        return _rms(self.error_target) + _rms(self.truth[HOOK_RECONS])

    def token_scale(self, hook: str) -> Array:
        """Return the smallest `scale(hook)` of each token, `(tokens,)`: that of a preactivation that is no outlier.

        With it, a program in any language can compute `scale`. It is the same number for every element, except that for
        features it is at least `abs(truth of acts_pre) / OUTLIER_RATIO`.
        """
        return (self._sizes_of_features[0] if hook in FEATURE_HOOKS else self.scale(hook))[:, 0]

    @cached_property
    def _sizes_of_features(self) -> tuple[Array, Array]:
        """The size of a preactivation that is no outlier, `(tokens, 1)`, and that of each, `(tokens, d_sae)`."""
        size = np.abs(self.truth[HOOK_ACTS_PRE])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a token whose preactivations are all zero has no median
            median = np.nanmedian(np.where(size > 0, size, np.nan), axis=1, keepdims=True)
        typical = _rms(np.minimum(size, OUTLIER_RATIO * np.nan_to_num(median)))
        return typical, np.maximum(typical, size / OUTLIER_RATIO)

    def own_errors(self, hook: str) -> Errors:
        """Return the errors of the original, which calibrate the budget."""
        return self.errors(hook, self.original[hook])

    def floor(self, hook: str) -> float:
        """Return the part of the budget that does not depend on the original: one unit for each rounding."""
        return FLOOR[self.dtype] * count_roundings(hook, self.is_steered)

    def errors(self, hook: str, y: Array) -> Errors:
        """Return the token error and the element error of `y`."""
        elements = self.element_errors(hook, y)
        return Errors(float(_rms(elements).max(initial=0.0)), float(elements.max(initial=0.0)))

    def element_errors(self, hook: str, y: Array) -> Array:
        """Return the error of each element of `y`, `(tokens, width)`."""
        errors = _rows(y).astype(np.float64)
        errors -= _rows(self.truth[hook])
        np.abs(errors, out=errors)
        with np.errstate(divide="ignore"):  # where the scale is 0, only the truth itself has error 0
            np.divide(errors, self.scale(hook), out=errors, where=errors != 0)
        return errors

    def token_errors(self, hook: str, y: Array) -> Array:
        """Return the error of each token of `y`, `(tokens,)`."""
        return _rms(self.element_errors(hook, y))[:, 0]

    @property
    def judges_columns(self) -> bool:
        """Whether columns are judged: in half precision, if there are enough tokens."""
        return self.dtype != FLOAT32 and not self.rounded and self.tokens >= MIN_COLUMN_TOKENS

    def column_errors(self, hook: str, y: Array) -> Array:
        """Return the error of each column of `y`, the root of its mean square over the tokens, `(width,)`."""
        return _column_rms(self.element_errors(hook, y))

    def column_budgets(self, hook: str) -> Array:
        """Return the largest error that each column may have, `(width,)`: the original's, or one rounding."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a token of scale 0 has nothing to round
            one_rounding = self.floor(hook) * _column_rms(np.nan_to_num(_rows(self.truth[hook]) / self.scale(hook)))
        return np.maximum(FACTOR * self.column_errors(hook, self.original[hook]), one_rounding)

    def worst(self, hook: str, y: Array) -> tuple[int, ...]:
        """Return the index of the element of `y` with the largest error."""
        return index_of(int(np.argmax(self.element_errors(hook, y))), y.shape)


@dataclass(frozen=True)
class SteeredReference(Reference):
    """What an artifact is judged against under an intervention.

    Attributes:
        clean: The reference of the same inputs without the intervention.
        intervention: The edits with which the original was run.
    """

    clean: Reference = field(kw_only=True)
    intervention: Intervention = field(kw_only=True)

    @property
    def is_steered(self) -> bool:
        """Whether this is the reference under an intervention."""
        return True

    def subset(self, tokens: Array) -> "SteeredReference":
        """Return the reference of some of the tokens, given by a mask or by indices."""
        part, edits = cast(SteeredReference, super().subset(tokens)), self.intervention
        scale, shift = (
            values[tokens] if values.ndim > 1 and len(values) > 1 else values for values in (edits.scale, edits.shift)
        )
        return dataclasses.replace(
            part, clean=self.clean.subset(tokens), intervention=Intervention(edits.ids, scale, shift)
        )

    @property
    def support_is_free(self) -> Array:
        """Whether a feature's activation is judged by its size only, be it on or off, `(tokens, d_sae)`.

        That holds for edited features whose activation is computed: a sum may or may not cancel exactly, and a product
        may underflow.
        """
        scale, shift = self.intervention.scale, self.intervention.shift
        computed = (scale != 0) & ((scale != 1) | (shift != 0))
        free = super().support_is_free
        free[:, self.intervention.ids] |= np.atleast_2d(computed)
        return free

    def scale(self, hook: str) -> Array:
        """Return `s` of the module's docstring, `(tokens, 1)`, or `(tokens, d_sae)` for features."""
        own = super().scale(hook)
        return own if hook in FEATURE_HOOKS else own + _rms(self.clean.truth[HOOK_RECONS])

    def own_errors(self, hook: str) -> Errors:
        """Return the errors of the original, the larger ones of its two passes."""
        return larger_errors(super().own_errors(hook), self.clean.own_errors(hook))


def derive_outputs(recons: Array, error: Array | None, use_error_term: bool) -> dict[str, Array]:
    """Return the hooks after the activations: the reconstruction, the error unless it is None, and the output."""
    if error is None:
        return {HOOK_RECONS: recons, HOOK_OUTPUT: recons}
    return {HOOK_RECONS: recons, HOOK_ERROR: error, HOOK_OUTPUT: recons + error if use_error_term else recons}


def _rows(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _rms(array: Array) -> Array:
    """Return the norm of each token divided by the square root of its width, `(tokens, 1)` float64."""
    squares = np.square(_rows(array), dtype=np.float64)
    return np.sqrt(squares.sum(axis=1, keepdims=True)) / np.sqrt(squares.shape[1])


def _column_rms(rows: Array) -> Array:
    rms: Array = np.sqrt(np.mean(rows**2, axis=0))
    return rms


def index_of(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of the element at position `flat` of a flattened array."""
    return tuple(int(i) for i in np.unravel_index(flat, shape))

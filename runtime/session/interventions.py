"""Edits of features, carried out by a graph as a forward hook on `hook_sae_acts_post` would do it in PyTorch.

Every edit is `activation * scale + shift`:

    edit        scale   shift
    Ablate()    0       0
    Clamp(v)    0       v
    Scale(s)    s       0
    Add(v)      1       v

A feature that is off has the activation 0: `Scale` leaves it off, `Clamp` and `Add` switch it on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.dtypes import is_float, rounded
from ..arrays.limits import check_fits
from ..arrays.tensor import Array, Tensor, TensorValue, as_given, check_holds_its_values
from ..artifact.names import FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT
from ..errors import InputError


@dataclass(frozen=True, eq=False)  # comparing arrays does not give one bool
class Edit:
    """An edit `activation * scale + shift`. Each is a number, or an array of the tokens' shape."""

    scale: npt.ArrayLike = 1.0
    shift: npt.ArrayLike = 0.0


class Ablate(Edit):
    """Switch the feature off."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0)


class Clamp(Edit):
    """Set the feature to `value`, whatever its activation was."""

    def __init__(self, value: npt.ArrayLike) -> None:
        super().__init__(0.0, value)


class Scale(Edit):
    """Multiply the feature by `factor`."""

    def __init__(self, factor: npt.ArrayLike) -> None:
        super().__init__(factor, 0.0)


class Add(Edit):
    """Add `value` to the feature."""

    def __init__(self, value: npt.ArrayLike) -> None:
        super().__init__(1.0, value)


class Intervention:
    """Edits of several features at once: `acts_post[..., ids] = acts_post[..., ids] * scale + shift`.

    Called as a hook function with activations `(..., d_sae)`, it returns an edited copy.

    Attributes:
        ids: Ids of the features, `(m,)` int64.
        scale: Factors, `(m,)`, or `(..., m)` with the leading dimensions of the tokens; float64.
        shift: Summands, with the same shapes; float64.

    Args:
        ids: Distinct ids of features; the list may be empty.
        scale: `(m,)`, `(..., m)`, or one number for all features.
        shift: As for `scale`.

    Raises:
        InputError: An id is not a non-negative integer or is repeated, or scale or shift do not have one finite number
            per feature.
    """

    def __init__(self, ids: Any, scale: npt.ArrayLike, shift: npt.ArrayLike) -> None:
        self.ids = _distinct(as_feature_ids(ids))
        self.scale = _checked_numbers("scale", scale, self.ids)
        self.shift = _checked_numbers("shift", shift, self.ids)

    @classmethod
    def of(cls, edits: Mapping[int, Edit]) -> "Intervention":
        """Return the intervention for a dict from feature ids to edits.

        Raises:
            InputError: `Intervention` refuses the edits, a value is not an `Edit`, or the shapes of values for each
                token cannot be broadcast together.
        """
        if not isinstance(edits, Mapping):
            raise InputError(f"The edits are {edits!r}; they must be a dict from feature ids to edits.")
        for feature, edit in edits.items():
            if not isinstance(edit, Edit):
                raise InputError(
                    f"The edit of feature {feature!r} is {edit!r}; it must be Ablate(), Clamp(v), Scale(s), Add(v) or "
                    "Edit(scale, shift)."
                )
        ids = _distinct(as_feature_ids(list(edits)))
        scale = _stacked("scale", ids, [edit.scale for edit in edits.values()])
        shift = _stacked("shift", ids, [edit.shift for edit in edits.values()])
        return cls(ids, scale, shift)

    def check(self, d_sae: int, dtype: str) -> None:
        """Refuse edits that an SAE with `d_sae` features in `dtype` cannot carry out.

        Raises:
            InputError: A feature does not exist, or a value is infinite in `dtype`.
        """
        _check_ids(self.ids, d_sae)
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            with np.errstate(over="ignore"):
                _check_finite(name, values, rounded(values, dtype), dtype, self.ids)

    def __call__(self, acts_post: Array, hook: object = None) -> Array:
        """Return an edited copy of `acts_post`, `(..., d_sae)`.

        Raises:
            InputError: `acts_post` is not an array of floats, or lacks a feature, or scale or shift have a row for each
                token and it has other leading dimensions.
        """
        acts_post = np.asarray(acts_post if isinstance(acts_post, Tensor) else as_given(acts_post))
        if not acts_post.ndim or not is_float(acts_post.dtype):
            raise InputError(
                f"The activations are {acts_post.shape} {acts_post.dtype}; they must be floats, (..., d_sae)."
            )
        _check_ids(self.ids, acts_post.shape[-1])
        self._check_lead(acts_post.shape[:-1])
        scale, shift = self.scale.astype(acts_post.dtype), self.shift.astype(acts_post.dtype)
        edited = acts_post.copy()
        with np.errstate(invalid="ignore", over="ignore"):  # of an activation that is infinite; a graph does not warn
            edited[..., self.ids] = edited[..., self.ids] * scale + shift
        return edited

    def of_features(self, ids: Array) -> "Intervention":
        """Return the same edits for activations `(..., m)` of the features `ids`, which it calls 0 to m - 1."""
        edited = np.flatnonzero(np.isin(ids, self.ids))
        order = np.argsort(self.ids)
        places = order[np.searchsorted(self.ids, ids[edited], sorter=order)]
        return Intervention(edited, self.scale[..., places], self.shift[..., places])

    def feeds(self, lead: tuple[int, ...], dtype: str) -> dict[str, TensorValue]:
        """Return the inputs of `steer.onnx` that describe the edits, for tokens with the leading dimensions `lead`.

        Raises:
            InputError: Scale or shift have a row for each token, and `lead` is another shape.
        """
        self._check_lead(lead)
        m = len(self.ids)
        per_token = self.scale.ndim > 1 or self.shift.ndim > 1
        shape, rows = ((*lead, m), math.prod(lead)) if per_token else ((m,), 1)

        def flat(values: Array) -> TensorValue:
            return np.ascontiguousarray(np.broadcast_to(values, shape).reshape(rows, m)).astype(dtype)

        return {FEATURE_IDS: self.ids, FEATURE_SCALE: flat(self.scale), FEATURE_SHIFT: flat(self.shift)}

    def _check_lead(self, lead: tuple[int, ...]) -> None:
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            own = values.shape[:-1]
            pairs = zip(reversed(own), reversed(lead), strict=False)
            if len(own) > len(lead) or any(n not in (1, size) for n, size in pairs):
                raise InputError(
                    f"The {name} of the intervention is given for tokens of shape {own}, the activations have {lead}. "
                    "Give one number for all tokens, or an array of the tokens' shape."
                )


def as_feature_ids(ids: Any, d_sae: int | None = None) -> Array:
    """Return the ids of features that a caller gave as a new array, `(m,)` int64.

    Args:
        ids: List or array of whole numbers.
        d_sae: Number of features of the SAE; None if it is not known.

    Raises:
        InputError: They are something else, or an id is not that of a feature.
    """
    try:
        check_holds_its_values(ids)
        array = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths; a tensor that numpy cannot read
        array = np.asarray(None)
    if array.shape == (0,):
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"Feature ids are {ids!r}; they must be a list of whole numbers.")
    if (outside := array[(array < 0) | (array > np.iinfo(np.int64).max)]).size:
        raise InputError(f"There is no feature {outside[0]}; features are counted from 0.")
    if d_sae is not None:
        _check_ids(array, d_sae)
    return array.astype(np.int64)


def _check_ids(ids: Array, d_sae: int) -> None:
    if (outside := ids[ids >= d_sae]).size:
        raise InputError(f"There is no feature {outside[0]}; this SAE has {d_sae}, counted from 0.")


def _distinct(ids: Array) -> Array:
    unique, counts = np.unique(ids, return_counts=True)
    if (twice := counts > 1).any():
        raise InputError(f"Feature {unique[twice][0]} is there {counts[twice][0]} times; give it one edit.")
    return ids


def _checked_numbers(name: str, values: npt.ArrayLike, ids: Array) -> Array:
    array = _numbers(name, values)
    if array.ndim == 0:
        array = np.full(len(ids), array)
    if array.shape[-1] != len(ids):
        raise InputError(f"The {name} has shape {array.shape}; its last dimension must be {len(ids)}, one per feature.")
    _check_finite(name, array, array, "float64", ids)
    return array


def _numbers(name: str, values: npt.ArrayLike) -> Array:
    check_holds_its_values(values)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths; a tensor that requires grad
        array = np.asarray(None)
    if array.dtype.kind not in "iu" and not is_float(array.dtype):
        raise InputError(f"The {name} is {values!r}; it must be numbers.")
    check_fits(f"The {name} of the intervention", array.size * np.dtype(np.float64).itemsize)
    return array.astype(np.float64)


def _check_finite(name: str, given: Array, array: Array, dtype: str, ids: Array) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = np.unravel_index(int(np.argmin(finite)), array.shape)
        raise InputError(
            f"The {name} of feature {ids[index[-1]]} is {given[index]}; it must be finite in {dtype}, "
            "or the whole reconstruction is lost."
        )


def _stacked(name: str, ids: Array, values: Sequence[npt.ArrayLike]) -> Array:
    """Return one array with the features last; a number for all tokens is broadcast to arrays with one per token."""
    if not values:
        return np.zeros(0)
    try:
        return np.stack(np.broadcast_arrays(*(_numbers(name, value) for value in values)), axis=-1)
    except InputError:
        raise
    except ValueError:
        shapes = ", ".join(f"{feature}: {np.shape(value)}" for feature, value in zip(ids, values, strict=True))
        raise InputError(
            f"Each {name} must be a number or an array of the tokens' shape; the shapes are {shapes}."
        ) from None

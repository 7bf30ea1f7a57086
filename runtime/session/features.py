"""The sparse result: the strongest features of each token, instead of `d_sae` activations that are mostly zero."""

from typing import Generic, TypeVar

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.limits import check_fits
from ..arrays.tensor import Array, TensorValue
from ..errors import InputError

Value = TypeVar("Value", bound=TensorValue)

_INDEX_BITS = 32
_LAST = np.uint64((1 << _INDEX_BITS) - 1)


class TopFeatures(tuple[Value, Value, Value], Generic[Value]):
    """The k features with the largest activations, in absolute value, of each token.

    It can be unpacked: `indices, values, l0 = sae.top_features(x, k)`.

    Where fewer than k features are on, the places after them have the index -1 and the value 0. A token with NaN among
    its activations, as NaN in the input gives, has the index -1 and the value NaN in every place, and l0 = -1. Of
    features that are equally strong, the one with the smaller id comes first on a CPU; on a GPU the order may differ.
    """

    # Not a NamedTuple: before Python 3.11 those cannot be generic.
    __slots__ = ()

    def __new__(cls, indices: Value, values: Value, l0: Value) -> "TopFeatures[Value]":
        """Return the result that consists of these three arrays."""
        return super().__new__(cls, (indices, values, l0))

    def __getnewargs__(self) -> tuple[Value, Value, Value]:
        return self[0], self[1], self[2]  # for pickle

    @property
    def indices(self) -> Value:
        """Ids of the features, `(..., k)` int64, the strongest first; -1 after the last feature that is on."""
        return self[0]

    @property
    def values(self) -> Value:
        """Activations of the features, `(..., k)`; 0 after the last feature that is on."""
        return self[1]

    @property
    def l0(self) -> Value:
        """The number of features that are on, `(...)` int64; -1 for a token with NaN."""
        return self[2]

    @property
    def lossless(self) -> Array:
        """Whether the result is complete for each token, `(...)` bool: at most k features are on, and none is NaN."""
        l0 = np.asarray(self.l0)
        return np.asarray((l0 >= 0) & (l0 <= self.indices.shape[-1]))

    def dense(self, d_sae: int) -> Array:
        """Return the activations, `(..., d_sae)`, with 0 for the features that the result leaves out.

        They are NaN for every feature of a token with NaN.

        Args:
            d_sae: Number of features of the SAE.

        Raises:
            InputError: A feature that is on has an index that is not in `[0, d_sae)`, or the result does not fit in
                memory.
        """
        d_sae = as_integer("d_sae", d_sae, 0)
        indices, values, l0 = (np.asarray(array) for array in self)
        *where, place = np.nonzero((values != 0) & (l0 >= 0)[..., None])
        on = indices[(*where, place)]
        if on.size and not 0 <= int(on.min()) <= int(on.max()) < d_sae:
            raise InputError(f"The indices range from {on.min()} to {on.max()}, but d_sae is {d_sae}.")
        check_fits("The dense array", max(1, l0.size) * d_sae * values.dtype.itemsize)
        dense = np.zeros((*indices.shape[:-1], d_sae), values.dtype)
        dense[(*where, on)] = values[(*where, place)]
        dense[l0 < 0] = np.nan
        return dense

    def __repr__(self) -> str:
        return f"TopFeatures(indices={self.indices!r}, values={self.values!r}, l0={self.l0!r})"


def strongest_features(acts: Array, k: int) -> TopFeatures[Array]:
    """Return the k features with the largest absolute activations, `(..., d_sae)`, by the rules of `features.onnx`.

    They are in descending order. If two are equally strong, the one with the smaller id comes first.
    """
    # A non-negative float32 sorts like its bits. With the inverted id below, every key is unique and both rules hold.
    strength = np.ascontiguousarray(np.abs(acts.astype(np.float32))).view(np.uint32).astype(np.uint64)
    keys = (strength << np.uint64(_INDEX_BITS)) | (_LAST - np.arange(acts.shape[-1], dtype=np.uint64))
    first = acts.shape[-1] - k
    strongest = np.sort(np.partition(keys, first, axis=-1)[..., first:], axis=-1)[..., ::-1]
    indices = (_LAST - (strongest & _LAST)).astype(np.int64)
    values = np.take_along_axis(acts, indices, axis=-1)
    has_nan = np.asarray(np.isnan(acts).any(axis=-1))
    values[has_nan] = np.nan
    indices[has_nan[..., None] | (values == 0)] = -1
    l0 = np.where(has_nan, -1, (acts != 0).sum(axis=-1, dtype=np.int64))
    return TopFeatures(indices, values, l0)

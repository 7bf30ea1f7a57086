"""The sparse result: the strongest features of each token, instead of `d_sae` activations that are mostly zero."""

from typing import Generic, TypeVar

import numpy as np

from ..arrays.tensor import Array, TensorValue

Value = TypeVar("Value", bound=TensorValue)

_INDEX_BITS = 32
_LAST = np.uint64((1 << _INDEX_BITS) - 1)


class TopFeatures(tuple[Value, Value, Value], Generic[Value]):
    """The k features with the largest activations, in absolute value, of each token.

    It can be unpacked: `indices, values, l0 = sae.top_features(x, k)`.
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
        """Ids of the features, `(..., k)` int64, the strongest first."""
        return self[0]

    @property
    def values(self) -> Value:
        """Activations of the features, `(..., k)`; 0 after the last feature that is on, where the index is unused."""
        return self[1]

    @property
    def l0(self) -> Value:
        """The number of features that are on, `(...)` int64."""
        return self[2]

    @property
    def lossless(self) -> Array:
        """Whether the result is complete for each token, `(...)` bool: at most k features are on."""
        return np.asarray(np.asarray(self.l0) <= self.indices.shape[-1])

    def dense(self, d_sae: int) -> Array:
        """Return the activations, `(..., d_sae)`, with 0 for the features that the result leaves out.

        Raises:
            IndexError: An index is not in `[0, d_sae)`.
        """
        indices, values = np.asarray(self.indices), np.asarray(self.values)
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < d_sae:
            raise IndexError(f"The indices range from {indices.min()} to {indices.max()}, but d_sae is {d_sae}.")
        dense = np.zeros((*indices.shape[:-1], d_sae), values.dtype)
        # After the last feature that is on, an index may repeat a feature that is on: nothing is written there.
        *where, place = np.nonzero(values)
        dense[(*where, indices[(*where, place)])] = values[(*where, place)]
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
    return TopFeatures(
        indices, np.take_along_axis(acts, indices, axis=-1), np.asarray((acts != 0).sum(axis=-1, dtype=np.int64))
    )

"""The sparse result: the strongest features of each token, instead of `d_sae` activations of which most are zero."""

from typing import NamedTuple

import numpy as np

from ..arrays.tensor import Array, TensorValue


class TopFeatures(NamedTuple):
    """The k features with the largest activations, in absolute value, of each token.

    Attributes:
        indices: which, `(..., k)` int64, the strongest first.
        values: their activations, `(..., k)`; 0 behind the last that is on, where the index means nothing.
        l0: how many features are on in all, `(...)` int64.
    """

    indices: TensorValue
    values: TensorValue
    l0: TensorValue

    @property
    def lossless(self) -> Array:
        """Whether nothing is missing, for each token, `(...)` bool: no more than k features are on."""
        return np.asarray(np.asarray(self.l0) <= self.indices.shape[-1])

    def dense(self, d_sae: int) -> Array:
        """Return the activations, `(..., d_sae)`, those that are missing as 0.

        Raises:
            IndexError: an index is not in `[0, d_sae)`.
        """
        indices, values = np.asarray(self.indices), np.asarray(self.values)
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < d_sae:
            raise IndexError(f"indices go from {indices.min()} to {indices.max()}, d_sae is {d_sae}.")
        dense = np.zeros((*indices.shape[:-1], d_sae), values.dtype)
        # Behind the last that is on, an index could be one that is on already: nothing is written there.
        *where, place = np.nonzero(values)
        dense[(*where, indices[(*where, place)])] = values[(*where, place)]
        return dense

"""The sparse result: the strongest features of each token, instead of `d_sae` activations that are mostly zero."""

import html
import itertools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.limits import check_fits
from ..arrays.tensor import Array, TensorValue
from ..artifact.labels import Labels
from ..errors import InputError
from ..tables import format_table

Value = TypeVar("Value", bound=TensorValue)

PRINTED_TOKENS, PRINTED = 10, 5
"""Tokens, and features of each, that are printed."""

_INDEX_BITS = 32
_LAST = np.uint64((1 << _INDEX_BITS) - 1)


class TopFeatures(tuple[Value, Value, Value], Generic[Value]):
    """The k features with the largest activations, in absolute value, of each token.

    It can be unpacked: `indices, values, l0 = sae.top_features(x, k)`. Printed, it is a table of the first tokens with
    their strongest features, and with their labels where the artifact has some.

    Where fewer than k features are on, the places after them have the index -1 and the value 0. A token with NaN among
    its activations, as NaN in the input gives, has the index -1 and the value NaN in every place, and l0 = -1. Of
    features that are equally strong, the one with the smaller id comes first on a CPU; on a GPU the order may differ.
    """

    # Not a NamedTuple: before Python 3.11 those cannot be generic.
    _read_labels: Callable[[], Labels] | None

    def __new__(
        cls, indices: Value, values: Value, l0: Value, read_labels: Callable[[], Labels] | None = None
    ) -> "TopFeatures[Value]":
        """Return the result that consists of these three arrays.

        Args:
            indices: Ids of the features.
            values: Their activations.
            l0: The number of features that are on.
            read_labels: Function that returns the labels of the features, with which the result is printed.
        """
        found = super().__new__(cls, (indices, values, l0))
        found._read_labels = read_labels
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self[0], self[1], self[2])  # a copy is printed without labels

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

    def to_scipy(self, d_sae: int) -> Any:
        """Return the activations as a `scipy.sparse.csr_array`, `(tokens, d_sae)`, for leading dimensions flattened.

        Args:
            d_sae: Number of features of the SAE.

        Raises:
            InputError: A token has NaN, a feature that is on has an index that is not in `[0, d_sae)`, or SciPy is not
                installed.
        """
        try:
            from scipy.sparse import csr_array
        except ModuleNotFoundError as error:
            raise _missing("to_scipy", error) from error
        self._refuse_nan("to_scipy")
        offsets, indices, values = self._ragged(by_id=True)
        d_sae = as_integer("d_sae", d_sae, 0)
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < d_sae:
            raise InputError(f"The indices range from {indices.min()} to {indices.max()}, but d_sae is {d_sae}.")
        return csr_array((values, indices, offsets), shape=(len(offsets) - 1, d_sae))

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table` with a row for each token, for leading dimensions flattened.

        Its columns are `indices: list<int32>` and `values: list<float>`, of the features that are on, the strongest
        first, and `l0: int32`. All three are null for a token with NaN.

        Raises:
            InputError: pyarrow is not installed.
        """
        pa = import_arrow()
        offsets, indices, values = self._ragged()
        l0 = np.asarray(self.l0).reshape(-1)
        places = pa.array(offsets, mask=np.append(l0 < 0, False))
        return pa.table({
            "indices": pa.ListArray.from_arrays(places, pa.array(indices)),
            "values": pa.ListArray.from_arrays(places, pa.array(values.astype(np.float32))),
            "l0": pa.array(l0.astype(np.int32), mask=l0 < 0),
        })  # fmt: skip

    def to_vectors(self) -> list[dict[str, list[Any]]]:
        """Return `{"indices": [...], "values": [...]}` for each token, by ascending index: the JSON of sparse vectors.

        This is the form of Qdrant. The page "Features as columns" of the documentation has those of OpenSearch,
        Elasticsearch and pgvector.

        Raises:
            InputError: A token has NaN.
        """
        self._refuse_nan("to_vectors")
        offsets, indices, values = self._ragged(by_id=True)
        rows = itertools.pairwise(offsets)
        return [{"indices": indices[a:b].tolist(), "values": values[a:b].tolist()} for a, b in rows]

    def _refuse_nan(self, method: str) -> None:
        if tokens := int((np.asarray(self.l0) < 0).sum()):
            raise InputError(
                f"{tokens} of {np.asarray(self.l0).size} tokens have NaN among their activations, which {method} "
                "cannot represent. Leave out the tokens whose l0 is -1."
            )

    def _ragged(self, by_id: bool = False) -> tuple[Array, Array, Array]:
        """Return the offsets of the tokens, and the ids and activations of the features that are on, one after another.

        Args:
            by_id: Whether the features of a token are in the order of their ids, instead of their strength.
        """
        width = self.indices.shape[-1]
        indices, values = (np.asarray(array).reshape(-1, width) for array in self[:2])
        if by_id:
            order = np.argsort(indices, axis=-1, kind="stable")
            indices, values = (np.take_along_axis(array, order, axis=-1) for array in (indices, values))
        on = (indices >= 0) & (values != 0)
        offsets = np.concatenate([[0], on.sum(axis=-1).cumsum()]).astype(np.int32)
        return offsets, indices[on].astype(np.int32), values[on]

    def __str__(self) -> str:
        """Return a table of the first tokens and their strongest features, with their labels if there are some."""
        rows = [
            (position, l0, ", ".join(f"{j} {value:.2f}" + (text and f' "{text}"') for j, value, text in strongest))
            for position, l0, strongest in self._printed()
        ]
        more = self._left_out()
        return format_table(rows, header=("token", "l0", "strongest features"), right=(1,)) + (more and f"\n{more}")

    def _repr_html_(self) -> str:
        """Return the same table for notebooks."""
        lines = ["<tr><th>token</th><th>l0</th><th>strongest features</th></tr>"]
        for position, l0, strongest in self._printed():
            cells = "<br>".join(f"{j} &nbsp;{value:.2f} &nbsp;{html.escape(text)}" for j, value, text in strongest)
            lines.append(f"<tr><td>{position}</td><td>{l0}</td><td>{cells}</td></tr>")
        return f"<table>{''.join(lines)}</table>{self._left_out()}"

    def _printed(self) -> list[tuple[str, str, list[tuple[int, float, str]]]]:
        """Return position, l0, and id, activation and label of the strongest features, of the first tokens."""
        indices, values, l0 = (np.asarray(array) for array in self)
        labels = None if self._read_labels is None else self._read_labels()
        rows = []
        for position in itertools.islice(np.ndindex(l0.shape), PRINTED_TOKENS):
            strongest = [
                (int(j), float(value), "" if labels is None else str(labels[int(j)]))
                for j, value in zip(indices[position][:PRINTED], values[position][:PRINTED], strict=True)
                if j >= 0
            ]
            on = int(l0[position])
            rows.append((", ".join(map(str, position)), "NaN" if on < 0 else str(on), strongest))
        return rows

    def _left_out(self) -> str:
        more = np.asarray(self.l0).size - PRINTED_TOKENS
        return f"and {more:,} more tokens" if more > 0 else ""

    def __repr__(self) -> str:
        return f"TopFeatures(indices={self.indices!r}, values={self.values!r}, l0={self.l0!r})"


def import_arrow() -> Any:
    """Import pyarrow.

    Raises:
        InputError: It is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise _missing("A table of features", error) from error
    return pyarrow


def _missing(what: str, error: ModuleNotFoundError) -> InputError:
    return InputError(f'{what} needs {error.name}, which is not installed: pip install "saeexport[tables]"')


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

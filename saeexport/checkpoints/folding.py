"""Folds factors into the weights of an SAE, in float64 and with a single rounding.

A checkpoint may scale its input, or its features by the norms of its decoder, where a HookedSAE does not. The weights
of the HookedSAE are then products. They are computed in float64, in blocks of rows, and rounded once, to the dtype that
is wanted: a product that is rounded to bfloat16 first is off by up to 4e-3, which turns other features on.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 21
"""Number of elements that are widened at a time, 16 MiB in float64."""


def fold(
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    *,
    input_scale: float = 1.0,
    feature_scale: Tensor | None = None,
    decoder_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the parameters of an SAE in `dtype` that computes the same on inputs and features that are not scaled.

    With `s`, `f` and `d` the three scales, `acts_pre` is `((s * x - b_dec) @ W_enc + b_enc) * f` and the reconstruction
    is `((acts_post / f * d) @ W_dec + b_dec) / s`:

        W_enc * s * f,  b_enc * f,  W_dec * d / f / s,  b_dec / s

    Other parameters are only rounded. Tensors that do not change are returned as they are.

    Args:
        tensors: Tensors by the names of HookedSAE's parameters; tensors whose shapes do not fit the scales are left to
            `build`, which refuses them.
        dtype: Dtype of the parameters that are returned.
        input_scale: Factor of the input, `s`.
        feature_scale: Factor of each preactivation, `f`, `[d_sae]`. Where it is zero, the decoder's row is kept.
        decoder_scale: Factor of each feature before decoding, `d`, `[d_sae]`.
    """
    f = None if feature_scale is None else feature_scale.double()
    decoder_rows = 1.0 / input_scale if f is None else torch.where(f == 0, 1.0, f).reciprocal() / input_scale
    if decoder_scale is not None:
        decoder_rows = decoder_rows * decoder_scale.double()
    rows = {"W_dec": decoder_rows, "b_dec": 1.0 / input_scale, "b_enc": 1.0 if f is None else f}
    columns = {"W_enc": input_scale if f is None else f * input_scale}
    return {
        name: scaled(tensor, dtype, rows=rows.get(name, 1.0), columns=columns.get(name, 1.0))
        for name, tensor in tensors.items()
    }


def scaled(tensor: Tensor, dtype: torch.dtype, *, rows: Tensor | float = 1.0, columns: Tensor | float = 1.0) -> Tensor:
    """Return `tensor` with its rows and its columns multiplied by factors, computed in float64 and rounded to `dtype`.

    Args:
        tensor: A matrix, or a vector, which has only rows. It is not changed.
        dtype: Dtype of the result.
        rows: Factor of each row, or of all.
        columns: Factor of each column, or of all.
    """
    unscaled = all(isinstance(factor, float) and factor == 1.0 for factor in (rows, columns))
    if unscaled or not _fits(tensor, rows, columns):
        return tensor.to(dtype)
    if tensor.ndim < 2:
        return (tensor.double() * rows * columns).to(dtype)
    if not tensor.is_contiguous() and tensor.T.is_contiguous():  # a view of the file is read in the file's order
        return scaled(tensor.T, dtype, rows=columns, columns=rows).T
    result = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    for block in _blocks(tensor):
        factor = rows[block, None] if isinstance(rows, Tensor) else rows
        result[block] = (tensor[block].double() * factor * columns).to(dtype)
    return result


def row_norms(matrix: Tensor) -> Tensor:
    """Return the Euclidean norm of each row of a matrix, in float64."""
    if matrix.ndim != 2:
        return torch.ones(matrix.shape[:1], dtype=torch.float64)  # `build` refuses this shape
    norms = torch.empty(len(matrix), dtype=torch.float64, device=matrix.device)
    for block in _blocks(matrix):
        norms[block] = torch.linalg.vector_norm(matrix[block].double(), dim=-1)
    return norms


def divided_by_norms(vector: Tensor, matrix: Tensor) -> Tensor:
    """Return a vector divided by the norms of a matrix's rows; as it is if their numbers differ: `build` refuses it."""
    norms = row_norms(matrix)
    return vector / norms if norms.shape == vector.shape else vector


def product(vector: Tensor, matrix: Tensor) -> Tensor:
    """Return `vector @ matrix` in float64."""
    if not matrix.is_contiguous() and matrix.T.is_contiguous():
        columns = matrix.T
        return torch.cat([columns[block].double() @ vector.double() for block in _blocks(columns)])
    result = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for block in _blocks(matrix):
        result += vector[block].double() @ matrix[block].double()
    return result


def _blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield blocks of rows that have at most `BLOCK_ELEMENTS` elements, or one row."""
    step = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def _fits(tensor: Tensor, rows: Tensor | float, columns: Tensor | float) -> bool:
    """Tell whether there is a factor for each row and each column."""
    lengths = [(rows, 0), (columns, 1)]
    return tensor.ndim in (1, 2) and all(
        axis < tensor.ndim and factor.shape == (tensor.shape[axis],)
        for factor, axis in lengths
        if isinstance(factor, Tensor)
    )

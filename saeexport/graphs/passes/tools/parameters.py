"""Reads the matrices of a graph: parameters of the SAE's dtype, or int8 matrices with a scale for each block of a row.

An int8 matrix is `Reshape(DequantizeLinear(values, scales, axis=0), [rows, columns])`, with values `[blocks, width]`
and scales `[blocks]`. A row has `columns / width` consecutive blocks.
"""

import onnx_ir as ir

from .building import Nodes


def is_matrix(value: ir.Value | None) -> bool:
    """Tell whether a value is a parameter or a dequantized int8 matrix."""
    return value is not None and (value.is_initializer() or _dequantized(value) is not None)


def int8_matrix(at: Nodes, values: ir.Value, scales: ir.Value, shape: tuple[int, int]) -> ir.Value:
    """Return the float32 matrix, of the given shape, of int8 blocks and their scales."""
    return at("Reshape", [at("DequantizeLinear", [values, scales], axis=0), at.vector(shape)])


def rows_of(at: Nodes, matrix: ir.Value, ids: ir.Value, axis: int = 0) -> ir.Value:
    """Return rows of a matrix, or columns along axis 1, by their int64 `ids`, `[n]`; only these int8 rows are read."""
    node = _dequantized(matrix)
    if node is None:
        return at("Gather", [matrix, ids], axis=axis)
    values, scales = node.inputs[:2]
    assert values is not None
    columns, blocks = _columns(matrix), _columns(matrix) // _columns(values)
    first = at("Mul", [at("Unsqueeze", [ids, at.vector([1])]), at.scalar(blocks)])
    block = at("Reshape", [at("Add", [first, at.vector(range(blocks))]), at.vector([-1])])
    rows = at("DequantizeLinear", [at("Gather", [value, block]) for value in (values, scales)], axis=0)
    return at("Reshape", [rows, at.vector([-1, columns])])


def whole(at: Nodes, matrix: ir.Value) -> ir.Value:
    """Return the whole matrix; an int8 matrix is dequantized at this place, so only if this part of the graph runs."""
    node = _dequantized(matrix)
    if node is None:
        return matrix
    assert matrix.shape is not None
    values, scales = node.inputs[:2]
    assert values is not None
    assert scales is not None
    rows, columns = matrix.shape.numpy()
    return int8_matrix(at, values, scales, (rows, columns))


def _dequantized(matrix: ir.Value) -> ir.Node | None:
    reshape = matrix.producer()
    source = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    node = source.producer() if source is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _columns(matrix: ir.Value) -> int:
    assert matrix.shape is not None
    return int(matrix.shape.numpy()[1])

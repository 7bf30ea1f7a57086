"""The matrices of a graph: a float32 parameter, or one of int8 with a scale for each block of a row.

The latter is `Reshape(DequantizeLinear(numbers, scales, axis=0), [rows, columns])`, of numbers `[blocks, width]` and
scales `[blocks]`; a row has `columns / width` blocks, one behind the other.
"""

import onnx_ir as ir

from .building import Nodes


def is_matrix(value: ir.Value | None) -> bool:
    """Tell whether a value is a parameter, or made of int8 ones."""
    return value is not None and (value.is_initializer() or _dequantized(value) is not None)


def int8_matrix(at: Nodes, numbers: ir.Value, scales: ir.Value, shape: tuple[int, int]) -> ir.Value:
    """Return the float32 matrix of a shape that is made of int8 blocks."""
    return at("Reshape", [at("DequantizeLinear", [numbers, scales], axis=0), at.vector(shape)])


def rows_of(at: Nodes, matrix: ir.Value, ids: ir.Value, axis: int = 0) -> ir.Value:
    """Return rows of a matrix, or along axis 1 columns, by their int64 `ids`, `[n]`; of int8 only these are read."""
    node = _dequantized(matrix)
    if node is None:
        return at("Gather", [matrix, ids], axis=axis)
    numbers, scales = node.inputs[:2]
    assert numbers is not None
    columns, blocks = _columns(matrix), _columns(matrix) // _columns(numbers)
    first = at("Mul", [at("Unsqueeze", [ids, at.vector([1])]), at.scalar(blocks)])
    block = at("Reshape", [at("Add", [first, at.vector(range(blocks))]), at.vector([-1])])
    rows = at("DequantizeLinear", [at("Gather", [value, block]) for value in (numbers, scales)], axis=0)
    return at("Reshape", [rows, at.vector([-1, columns])])


def whole(at: Nodes, matrix: ir.Value) -> ir.Value:
    """Return all of a matrix; of int8 it is made where this is written, and so only if that is run."""
    node = _dequantized(matrix)
    if node is None:
        return matrix
    assert matrix.shape is not None
    numbers, scales = node.inputs[:2]
    assert numbers is not None
    assert scales is not None
    rows, columns = matrix.shape.numpy()
    return int8_matrix(at, numbers, scales, (rows, columns))


def _dequantized(matrix: ir.Value) -> ir.Node | None:
    reshape = matrix.producer()
    source = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    node = source.producer() if source is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _columns(matrix: ir.Value) -> int:
    assert matrix.shape is not None
    return int(matrix.shape.numpy()[1])

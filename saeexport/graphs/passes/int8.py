"""Weights of 8 bits: the encoder by ONNX Runtime's MatMulNBits, the decoder as int8 rows of which few are read.

    encoder  for every 64 inputs of a feature one scale, max|w| / 127, and w ~ scale * (q - 128), q from 1 to 255. The
             activations are rounded to 8 bits, too, on the way (accuracy_level 4): only so is it faster than float32.
    decoder  for every 64 outputs of a feature one scale, and w ~ scale * q; the rows that are read become float32 again

Source: ONNX Runtime's contrib operator `com.microsoft.MatMulNBits`; DequantizeLinear is a standard one.
"""

import numpy as np
import onnx_ir as ir

from runtime.arrays.tensor import Array

from .tools.building import Nodes
from .tools.parameters import int8_matrix

BLOCK = 64
"""Numbers with a scale of their own; a multiple of 16. With 32 the error is a tenth smaller, and the time larger."""

LARGEST, ZERO = 127, 128
ROWS_AT_A_TIME = 4096
DOMAIN = "com.microsoft"


def weights_to_int8(model: ir.Model, acts_post: str) -> dict[str, Array]:
    """Replace each product with a matrix of parameters, and return what takes the matrices' place, by name.

    Args:
        model: from the input to the hooks, its products Gemm.
        acts_post: the value whose products are the decoder's, by rows; the others are the encoder's.
    """
    tensors: dict[str, Array] = {}
    model.graph.opset_imports[DOMAIN] = 1
    for node in list(model.graph):
        weights = node.inputs[1] if node.op_type == "Gemm" else None
        if weights is None or not weights.is_initializer():
            continue
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        assert weights.const_value is not None
        assert weights.name is not None
        matrix = weights.const_value.numpy()
        first = node.inputs[0]
        if first is not None and first.name == acts_post and not transposed:
            parts = _rows_to_int8(matrix, weights.name)
            numbers, scales = (_parameter(model.graph, name, part) for name, part in parts.items())
            at = Nodes(model.graph, before=node)
            back = int8_matrix(at, numbers, scales, matrix.shape)
            back.shape, back.type = weights.shape, weights.type
            node.replace_input_with(1, back)
        else:
            parts = _columns_to_int8(matrix if transposed else matrix.T, weights.name)
            numbers, scales = (_parameter(model.graph, name, part) for name, part in parts.items())
            columns, inputs = matrix.shape if transposed else matrix.shape[::-1]
            bias = [None, None, node.inputs[2]] if len(node.inputs) > 2 else []
            attributes = {"K": inputs, "N": columns, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
            product = ir.node("MatMulNBits", [first, numbers, scales, *bias], attributes, domain=DOMAIN)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [product], node.outputs, product.outputs)
        tensors |= parts
    return tensors


def _rows_to_int8(matrix: Array, name: str) -> dict[str, Array]:
    """Return the rows of a matrix as blocks of int8, `[blocks, width]`, and their scales, `[blocks]`."""
    columns = matrix.shape[1]
    width = max(divisor for divisor in range(1, BLOCK + 1) if columns % divisor == 0)
    numbers = np.empty((matrix.size // width, width), np.int8)
    scales = np.empty(len(numbers), np.float32)
    step, per_row = max(1, ROWS_AT_A_TIME), columns // width
    for start in range(0, len(matrix), step):
        blocks = matrix[start : start + step].reshape(-1, width)
        where = slice(start * per_row, start * per_row + len(blocks))
        scales[where] = _scales(blocks)
        numbers[where] = np.rint(blocks / scales[where, None])
    return {f"{name}.int8": numbers, f"{name}.scale": scales}


def _columns_to_int8(transposed: Array, name: str) -> dict[str, Array]:
    """Return a matrix that is given as its transposed one, `[N, K]`, as uint8 `[N, K / 64, 64]`, and their scales."""
    features, inputs = transposed.shape
    blocks = -(-inputs // BLOCK)
    numbers = np.full((features, blocks, BLOCK), ZERO, np.uint8)
    scales = np.empty((features, blocks), np.float32)
    for i in range(blocks):  # block after block, so that no second matrix of floats is made
        part = transposed[:, i * BLOCK : (i + 1) * BLOCK]
        scales[:, i] = _scales(part)
        numbers[:, i, : part.shape[1]] = np.rint(part / scales[:, i : i + 1]) + ZERO
    return {f"{name}.int8": numbers, f"{name}.scale": scales}


def _scales(rows: Array) -> Array:
    """Return what one step is worth in each row, `[rows]`; of rows without a number other than zero it is 1."""
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    return np.where(largest > 0, largest / LARGEST, np.float32(1.0)).astype(np.float32)


def _parameter(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

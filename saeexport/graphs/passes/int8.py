"""Quantizes weights to 8 bits: the encoder for ONNX Runtime's MatMulNBits, the decoder as int8 rows.

    encoder  One scale per 64 inputs of a feature, max|w| / 127, and w ~ scale * (q - 128) with q from 1 to 255. The
             activations are rounded to 8 bits as well (accuracy_level 4); only then is it faster than float32.
    decoder  One scale per 64 outputs of a feature, and w ~ scale * q. Only rows that are read are widened to float32.

Sources: ONNX Runtime's contrib operator `com.microsoft.MatMulNBits`, and ONNX's `DequantizeLinear`.
"""

import numpy as np
import onnx_ir as ir

from runtime.arrays.tensor import Array

from .tools.building import Nodes
from .tools.parameters import int8_matrix

BLOCK = 64
"""Number of weights that share a scale, a multiple of 16. With 32 the error is a tenth smaller and the time longer."""

LARGEST, ZERO = 127, 128
ROWS_AT_A_TIME = 4096
DOMAIN = "com.microsoft"


def weights_to_int8(model: ir.Model, acts_post: str) -> dict[str, Array]:
    """Quantize the matrix of each product in place, and return the new parameters by name.

    Args:
        model: Traced model from the input to the hooks, with products as Gemm.
        acts_post: Name of the value whose products are those of the decoder; other products are those of the encoder.
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
            quantized, scales = (_parameter(model.graph, name, part) for name, part in parts.items())
            at = Nodes(model.graph, before=node)
            back = int8_matrix(at, quantized, scales, matrix.shape)
            back.shape, back.type = weights.shape, weights.type
            node.replace_input_with(1, back)
        else:
            parts = _columns_to_int8(matrix if transposed else matrix.T, weights.name)
            quantized, scales = (_parameter(model.graph, name, part) for name, part in parts.items())
            columns, inputs = matrix.shape if transposed else matrix.shape[::-1]
            bias = [None, None, node.inputs[2]] if len(node.inputs) > 2 else []
            attributes = {"K": inputs, "N": columns, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
            product = ir.node("MatMulNBits", [first, quantized, scales, *bias], attributes, domain=DOMAIN)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [product], node.outputs, product.outputs)
        tensors |= parts
    return tensors


def _rows_to_int8(matrix: Array, name: str) -> dict[str, Array]:
    """Return the rows of a matrix as int8 blocks, `[blocks, width]`, and their scales, `[blocks]`."""
    columns = matrix.shape[1]
    width = max(divisor for divisor in range(1, BLOCK + 1) if columns % divisor == 0)
    quantized = np.empty((matrix.size // width, width), np.int8)
    scales = np.empty(len(quantized), np.float32)
    per_row = columns // width
    for start in range(0, len(matrix), ROWS_AT_A_TIME):
        blocks = matrix[start : start + ROWS_AT_A_TIME].reshape(-1, width)
        where = slice(start * per_row, start * per_row + len(blocks))
        scales[where] = _scales(blocks)
        quantized[where] = np.rint(blocks / scales[where, None])
    return {f"{name}.int8": quantized, f"{name}.scale": scales}


def _columns_to_int8(transposed: Array, name: str) -> dict[str, Array]:
    """Return a matrix, given transposed as `[N, K]`, as uint8 blocks, `[N, K / 64, 64]`, and their scales."""
    features, inputs = transposed.shape
    blocks = -(-inputs // BLOCK)
    quantized = np.full((features, blocks, BLOCK), ZERO, np.uint8)
    scales = np.empty((features, blocks), np.float32)
    for i in range(blocks):  # block by block, so that no second float matrix is allocated
        part = transposed[:, i * BLOCK : (i + 1) * BLOCK]
        scales[:, i] = _scales(part)
        quantized[:, i, : part.shape[1]] = np.rint(part / scales[:, i : i + 1]) + ZERO
    return {f"{name}.int8": quantized, f"{name}.scale": scales}


def _scales(rows: Array) -> Array:
    """Return the scale of each row, `[rows]`; it is 1 for rows of zeros."""
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    return np.where(largest > 0, largest / LARGEST, np.float32(1.0)).astype(np.float32)


def _parameter(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

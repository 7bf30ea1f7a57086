"""Appends the bias to its matrix as a row, which makes one product: `x @ W + b` becomes `[x, 1] @ [W; b]`.

ONNX Runtime's CPU provider fills the result with the bias on one thread before the product, and reads it again during
the product; for an encoder with 24576 features that takes a tenth of the time. `[W; b]` needs no extra bytes if the
bias follows its matrix in the weights file, because the same bytes are read as one more row.
"""

import onnx_ir as ir

from .tools.building import Nodes


def fold_bias_into_matrix(model: ir.Model) -> ir.Model:
    """Rewrite each Gemm whose bias follows its matrix in the weights file and whose output is wider than its input."""
    folded: dict[tuple[str, str], ir.Value] = {}  # a custom class may have the same product twice
    for node in list(model.graph):
        if node.op_type == "Gemm" and len(node.inputs) == 3 and not node.attributes:
            matrix, bias = (value and value.const_value for value in node.inputs[1:])
            if isinstance(matrix, ir.ExternalTensor) and isinstance(bias, ir.ExternalTensor) and _follows(matrix, bias):
                names = (matrix.name, bias.name)
                if names not in folded:
                    folded[names] = _folded(model.graph, matrix, bias)
                _multiply(model.graph, node, folded[names])
    return model


def _follows(matrix: ir.ExternalTensor, bias: ir.ExternalTensor) -> bool:
    (rows, columns), shape = matrix.shape.numpy(), bias.shape.numpy()
    ends = (matrix.offset or 0) + (matrix.length or 0)
    return matrix.location == bias.location and ends == bias.offset and shape == (columns,) and rows < columns


def _folded(graph: ir.Graph, matrix: ir.ExternalTensor, bias: ir.ExternalTensor) -> ir.Value:
    """Return the matrix with the bias as its last row, a new initializer of the graph."""
    rows, columns = matrix.shape.numpy()
    name = f"{matrix.name}_and_{bias.name}"
    while name in graph.initializers:  # a custom class may have a parameter of this name
        name += "_"
    assert matrix.length is not None
    assert bias.length is not None
    both = ir.ExternalTensor(
        matrix.location, matrix.offset, matrix.length + bias.length, matrix.dtype,
        shape=ir.Shape([rows + 1, columns]), name=name, base_dir=matrix.base_dir,
    )  # fmt: skip
    weights = ir.Value(name=name, shape=both.shape, type=ir.TensorType(both.dtype), const_value=both)
    graph.register_initializer(weights)
    return weights


def _multiply(graph: ir.Graph, product: ir.Node, weights: ir.Value) -> None:
    """Replace the product `x @ W + b` by `[x, 1] @ weights`."""
    at = Nodes(graph, before=product)
    x = product.inputs[0]
    assert x is not None
    with_one = at("Pad", [x, at.vector([0, 0, 0, 1]), at("Squeeze", [at.number(1, x)])])
    result = at("Gemm", [with_one, weights])
    output = product.outputs[0]
    result.type, result.shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, product, [product], [], [output], [result])

"""Einsum, or MatMul, and the bias after it, become one Gemm.

`einops.einsum` is traced to `Einsum`, which ONNX Runtime computes 1.5 to 3.7 times slower than `MatMul` and which has
no bfloat16 kernel on CUDA. At rank 2 `Gemm` computes the product and the bias in one kernel everywhere.
"""

import re

import onnx_ir as ir


def products_to_gemm(model: ir.Model) -> ir.Model:
    """Replace every product of two matrices `x @ W`, with its bias if there is one, by a Gemm."""
    for product in list(model.graph):
        if not _is_matrix_product(product):
            continue
        inputs, last = list(product.inputs), product
        bias = _bias_of(product)
        if bias is not None:
            last, value = bias
            inputs.append(value)
        gemm = ir.Node("", "Gemm", inputs, num_outputs=1, name=product.name)
        ir.convenience.replace_nodes_and_values(
            model.graph, last, [last] if last is product else [product, last], [gemm], last.outputs, gemm.outputs
        )
    return model


def _is_matrix_product(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Einsum") or len(node.inputs) != 2:
        return False
    if any(value is None or value.shape is None or len(value.shape) != 2 for value in node.inputs):
        return False
    return node.op_type == "MatMul" or _is_matmul_equation(node.attributes["equation"].as_string())


def _is_matmul_equation(equation: str) -> bool:
    """Tell whether an equation is `ij,jk->ik` for matrices, also written with an ellipsis for i."""
    match = re.fullmatch(r"(\w|\.\.\.)(\w),(\w)(\w)->(\w|\.\.\.)(\w)", equation.replace(" ", ""))
    if not match:
        return False
    i, j, j2, k, i2, k2 = match.groups()
    return i == i2 and j == j2 and k == k2 and len({i, j, k}) == 3


def _bias_of(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the Add that is the only reader of a product, and the vector that it adds."""
    output = product.outputs[0]
    uses = list(output.uses())
    if output.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other.shape is None or len(other.shape) != 1 or not other.is_initializer():
        return None
    return add, other

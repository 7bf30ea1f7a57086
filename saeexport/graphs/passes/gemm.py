"""Replaces an Einsum or MatMul and the bias that is added to it by one Gemm.

`einops.einsum` is traced to `Einsum`, which ONNX Runtime computes 1.5 to 3.7 times slower than `MatMul` and which has
no bfloat16 kernel on CUDA. The other passes then know one kind of product; `unfuse.py` splits it again for a GPU.
"""

import re

import onnx_ir as ir


def products_to_gemm(model: ir.Model) -> ir.Model:
    """Replace every product of two matrices `x @ W` or `x @ W.T`, with its bias if there is one, by a Gemm."""
    for product in list(model.graph):
        transposed = _transposed(product)
        if transposed is None:
            continue
        inputs, last = list(product.inputs), product
        bias = _bias_of(product)
        if bias is not None:
            last, value = bias
            inputs.append(value)
        attributes = [ir.AttrInt64("transB", 1)] if transposed else []
        gemm = ir.Node("", "Gemm", inputs, attributes, num_outputs=1, name=product.name)
        ir.convenience.replace_nodes_and_values(
            model.graph, last, [last] if last is product else [product, last], [gemm], last.outputs, gemm.outputs
        )
    return model


def _transposed(node: ir.Node) -> bool | None:
    """Tell whether the second factor of a product of two matrices is transposed; None if it is another node."""
    if node.op_type not in ("MatMul", "Einsum") or len(node.inputs) != 2:
        return None
    if any(value is None or value.shape is None or len(value.shape) != 2 for value in node.inputs):
        return None
    return False if node.op_type == "MatMul" else _transposed_in(node.attributes["equation"].as_string())


def _transposed_in(equation: str) -> bool | None:
    """Return False for `ij,jk->ik`, True for `ij,kj->ik`, also with an ellipsis for i, and None for other equations."""
    match = re.fullmatch(r"(\w|\.\.\.)(\w),(\w)(\w)->(\w|\.\.\.)(\w)", equation.replace(" ", ""))
    if not match:
        return None
    i, j, first, second, i2, k = match.groups()
    if i != i2 or len({i, j, k}) != 3:
        return None
    return {(j, k): False, (k, j): True}.get((first, second))


def _bias_of(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the only node that reads a product and the vector that it adds, if that node is an Add; else None."""
    output = product.outputs[0]
    uses = list(output.uses())
    if output.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other.shape is None or len(other.shape) != 1 or not other.is_initializer():
        return None
    return add, other

"""Infers the sign of values from the nodes that compute them."""

import onnx_ir as ir

NONNEGATIVE = ("Relu", "Abs", "Exp", "Sigmoid", "Softplus")


def is_nonnegative(value: ir.Value) -> bool:
    """Tell whether a value is at least zero (or NaN) for every input, as after ReLU; abs-top-k is not."""
    node = value.producer()
    if node is None:
        constant = value.const_value
        return constant is not None and constant.nbytes <= 1024 and bool((constant.numpy() >= 0).all())
    first = node.inputs[0]
    if node.op_type in NONNEGATIVE:
        return True
    if node.op_type == "Cast":  # a mask of the features that are on
        return first is not None and (first.dtype == ir.DataType.BOOL or is_nonnegative(first))
    if node.op_type == "Mul":
        return all(factor is not None and is_nonnegative(factor) for factor in node.inputs)
    if node.op_type == "ScatterElements":
        data, _, updates = node.inputs
        return all(part is not None and is_nonnegative(part) for part in (data, updates))
    if node.op_type in ("Expand", "Reshape", "Identity", "Gather"):
        return first is not None and is_nonnegative(first)
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        return filled is None or bool((filled.as_tensor().numpy() >= 0).all())
    return False

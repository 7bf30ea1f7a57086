"""Lets a host that was exported in bfloat16 compute in float32 with its bfloat16 weights.

ONNX Runtime's CPU provider, on which a graft is proved, moves, casts and normalises values of bfloat16. It does not
have kernels for MatMul, Gemm, Add, Mul, Softmax, Where and most others. So every value becomes float32, and each weight
is cast where it is read. No value is rounded then: the graph computes what the model computes in float32 with its
bfloat16 weights, which is also what PyTorch can be asked for.
"""

import numpy as np
import onnx_ir as ir

BFLOAT16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT

DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision")
"""Attributes of ONNX's operators whose integer stands for a dtype."""

SMALL = 1024
"""Weights of at most this many bytes become float32 themselves, so that a constant such as an epsilon needs no cast."""


def computes_in_bfloat16(model: ir.Model) -> bool:
    """Tell whether a node other than a Cast reads or computes a value of bfloat16."""
    return any(
        node.op_type != "Cast" and any(_is_bfloat16(value) for value in (*node.inputs, *node.outputs))
        for node in model.graph.all_nodes()
    )


def compute_in_float32(model: ir.Model) -> None:
    """Make every value of a model that is in bfloat16 float32; weights stay as they are, and are cast.

    The model is changed. The values keep their names, and the inputs and outputs are float32, too.
    """
    graphs = [model.graph, *model.graph.subgraphs()]
    weights = [(graph, weight) for graph in graphs for weight in graph.initializers.values() if _is_bfloat16(weight)]
    for value in (value for graph in graphs for value in graph.inputs):
        _widen_value(value)
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for node in nodes:
            _widen_attributes(node)
            for value in node.outputs:
                _widen_value(value)
    for graph, weight in weights:
        _widen_weight(graph, weight)


def _is_bfloat16(value: "ir.Value | None") -> bool:
    if value is None:
        return False
    if value.dtype is not None:
        return value.dtype == BFLOAT16
    if value.const_value is not None:
        return value.const_value.dtype == BFLOAT16
    node = value.producer()  # exporters without types of inner values
    return node is not None and node.op_type == "Cast" and node.attributes["to"].as_int() == BFLOAT16


def _widen_value(value: ir.Value) -> None:
    if value.dtype == BFLOAT16:
        value.type = ir.TensorType(FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.INT and name in DTYPE_ATTRIBUTES and attribute.as_int() == BFLOAT16:
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == BFLOAT16:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))


def _widen_weight(graph: ir.Graph, weight: ir.Value) -> None:
    tensor = weight.const_value
    assert tensor is not None
    if tensor.nbytes <= SMALL:
        weight.const_value, weight.type = _widened(tensor), ir.TensorType(FLOAT)
        return
    first = next(iter(graph), None)
    cast = ir.node("Cast", [weight], {"to": int(FLOAT)}, name=f"{weight.name}.float32")
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = cast.name, ir.TensorType(FLOAT), weight.shape
    weight.replace_all_uses_with(wide, replace_graph_outputs=True)
    cast.replace_input_with(0, weight)
    graph.insert_before(first, cast) if first is not None else graph.append(cast)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

"""Checks that a graph is portable: TensorRT 10 and ONNX Runtime 1.23, on CPU and CUDA, run all of it.

A graph with only the operators listed here runs as a whole on each of them, without nodes that fall back to the CPU.

Sources: `docs/operators.md` of onnx/onnx-tensorrt for TensorRT 10 (operators, types and restrictions), and
`docs/OperatorKernels.md` of microsoft/onnxruntime for CUDA (types of the kernels for opset 20).
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

OPSET, IR_VERSION = 20, 10
"""Versions of every graph. TensorRT reads them from 10.0 on (JetPack 6 has 10.3), ONNX Runtime from 1.18 on."""

MOST_DIMENSIONS = 8
"""Largest number of dimensions of a tensor, `nvinfer1::Dims::MAX_DIMS`."""

LARGEST_TOP_K = 3839
"""Largest k of TensorRT's TopK."""

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
TWO = frozenset({FLOAT, HALF})
THREE = TWO | {BRAIN}
ANY = THREE | INTEGERS | {TensorProto.BOOL}

_OPERATORS = {
    ANY: "Cast Concat Constant ConstantOfShape Expand Flatten Gather GatherElements Identity Reshape Shape Size Slice "
    "Split Squeeze Transpose Trilu Unsqueeze",
    THREE | INTEGERS: "Abs Add Div Max Min Mod Mul Neg Pow ReduceSum ScatterElements ScatterND Sign Sub Tile Where",
    THREE: "Erf Exp Gelu Gemm IsInf IsNaN LayerNormalization MatMul Relu Sigmoid Softmax Sqrt Tanh",
    TWO | INTEGERS: "Equal Greater GreaterOrEqual Less LessOrEqual ReduceMax ReduceMin TopK",
    TWO | {TensorProto.INT32}: "ReduceL1 ReduceL2 ReduceMean ReduceProd",
    TWO: "Ceil Clip Cos CumSum Einsum Elu Floor HardSigmoid LeakyRelu Log Reciprocal ReduceSumSquare Round Sin "
    "Softplus ThresholdedRelu",
    frozenset({FLOAT}) | INTEGERS: "Range",
    frozenset({TensorProto.BOOL}): "And Not Or Xor",
}
OPERATORS = {name: types for types, names in _OPERATORS.items() for name in names.split()}
"""The allowed operators of the standard domain, with the types of their inputs and outputs."""

BUILD_TIME = {
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Reduce")), 1),
    "CumSum": 1,
    "Squeeze": 1,
    "Unsqueeze": 1,
}
"""Operators with an input that must be constant when TensorRT builds an engine, the axes, and its position."""

ATTRIBUTES = {"ScatterElements": ("reduction", b"none"), "ScatterND": ("reduction", b"none"), "TopK": ("sorted", 1)}
"""Attributes that must have this value, by operator."""


def violations(path: Path) -> list[str]:
    """Return a message for everything in a graph that is not portable. The weights are not read.

    Args:
        path: A valid ONNX file.
    """
    model = onnx.load_model(path, load_external_data=False)
    return [*_of_the_file(model), *_of_the_graph(onnx.shape_inference.infer_shapes(model).graph)]


def _of_the_file(model: onnx.ModelProto) -> Iterator[str]:
    if model.ir_version != IR_VERSION:
        yield f"it has IR version {model.ir_version}, not {IR_VERSION}"
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"it uses the operators of {opset.domain}"
        elif opset.version != OPSET:
            yield f"it has opset {opset.version}, not {OPSET}"
    for function in model.functions:
        yield f"it has a function, {function.name}"


def _of_the_graph(graph: onnx.GraphProto) -> Iterator[str]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    types = {name: tensor.data_type for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            yield f"{value.name} is not a tensor with a known number of dimensions"
            continue
        types[value.name] = value.type.tensor_type.elem_type
        if len(value.type.tensor_type.shape.dim) > MOST_DIMENSIONS:
            yield f"{value.name} has more than {MOST_DIMENSIONS} dimensions"
    for node in graph.node:
        where = f"{node.op_type} ({node.name or ', '.join(node.output)})"
        if node.domain not in ("", "ai.onnx"):
            yield f"{where} is an operator of {node.domain}"
        elif node.op_type not in OPERATORS:
            yield f"{where} is not in the list of operators"
        else:
            yield from (f"{where} {what}" for what in _of_the_node(node, types, constants))
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield f"{where} has a graph inside: no control flow"


def _of_the_node(node: onnx.NodeProto, types: dict[str, int], constants: dict[str, TensorProto]) -> Iterator[str]:
    """Yield the reasons why a node with an allowed operator is not portable."""
    for name in _data(node):
        if name not in types:
            yield f"has {name}, of a type that cannot be inferred"
        elif types[name] not in OPERATORS[node.op_type]:
            yield f"has {name} in {TensorProto.DataType.Name(types[name])}"
    position = BUILD_TIME.get(node.op_type)
    axes = node.input[position] if position is not None and position < len(node.input) else ""
    if axes and axes not in constants:
        yield f"computes {axes}, which must be a constant"
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    key, only = ATTRIBUTES.get(node.op_type, ("", None))
    if attributes.get(key, only) != only:
        yield f"has the {key} {attributes[key]!r}"
    if node.op_type == "LayerNormalization" and len(node.output) > 1:
        yield "has more outputs than the first"
    if node.op_type == "TopK":
        k = constants.get(node.input[1])
        if k is not None and _integer(k) > LARGEST_TOP_K:
            yield f"keeps more than {LARGEST_TOP_K}"


def _integer(tensor: TensorProto) -> int:
    """Return the value of an integer constant; 0 for one in the weights file, which is not read."""
    return 0 if tensor.data_location == TensorProto.EXTERNAL else int(onnx.numpy_helper.to_array(tensor).max())


def _data(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the inputs and outputs that may be floats; ONNX fixes the types of indices, shapes and conditions."""
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    floats = {one.type_param_str for one in schema.type_constraints if "tensor(float)" in one.allowed_type_strs}
    for given, declared in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for i, name in enumerate(given):
            if name and declared[min(i, len(declared) - 1)].type_str in floats:
                yield name

"""Half precision where it cannot be computed in: operators run in float32, and what they give is rounded to it.

ONNX Runtime's CPU provider has no bfloat16, and takes float16 through several operators without rounding in between.
A GPU computes each operation in float32 and rounds its result, and so does PyTorch (twice where a product has a bias,
which is one operator here). Casts around an operator say the same in ONNX:

    half -> float32, operator, float32 -> half

Where the operator only moves or selects numbers, its result is one of half precision already; the next operator takes
it as it is.
"""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .tools.building import Nodes

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_ON_CUDA = "Add Cast Gather Gemm Identity MatMul Mul Relu Reshape ScatterElements ScatterND Shape Sub Where"
ON_CUDA = frozenset(_ON_CUDA.split())
"""What ONNX Runtime's CUDA provider computes in bfloat16.
Source: its docs/OperatorKernels.md; and no Expand, Exp, Greater, Pow, ReduceMean or TopK, which SAEs have too."""

NOWHERE = frozenset(("Cast", "Shape"))
"""What needs no float32 anywhere."""

_EXACT = (
    "Abs Concat Expand Flatten Gather GatherElements Identity Max Min Neg Pad ReduceMax ReduceMin Relu Reshape "
    "ScatterElements ScatterND Slice Squeeze TopK Transpose Unsqueeze Where"
)
EXACT = frozenset(_EXACT.split())
"""What gives numbers of half precision wherever it gets such."""


def widen(model: ir.Model, native: Collection[str] = NOWHERE) -> ir.Model:
    """Compute in float32, and round, what is not among the `native` operators of a graph without control flow."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):  # of what passes added
        model = ShapeInferencePass()(model).model
    graph = model.graph
    widened: dict[ir.Value, ir.Value] = {}  # of half precision: in float32

    def in_float32(value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in widened:
            widened[value] = Nodes(graph, before=reader).cast(value, ir.DataType.FLOAT)
        return widened[value]

    for node in list(graph):
        halves = [value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype in HALF]
        if node.op_type in native or not halves:
            continue
        for i, value in enumerate(node.inputs):
            if value in halves:
                node.replace_input_with(i, in_float32(value, node))
        for output in (output for output in node.outputs if output in halves):
            rounded = _rounded(graph, node, output)
            if node.op_type in EXACT:
                widened[rounded] = output
    return model


def _rounded(graph: ir.Graph, node: ir.Node, output: ir.Value) -> ir.Value:
    """Make an output of a node float32, and let what it is rounded to take its place and name."""
    assert output.dtype is not None
    cast = ir.node("Cast", [output], {"to": int(output.dtype)})
    rounded = cast.outputs[0]
    graph.insert_after(node, cast)
    rounded.type, rounded.shape = output.type, output.shape
    output.type = ir.TensorType(ir.DataType.FLOAT)
    for user, index in [(use.node, use.idx) for use in output.uses()]:
        if user is not cast:
            user.replace_input_with(index, rounded)
    for i, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[i] = rounded
    rounded.name, output.name = output.name, _unused(f"wide.{output.name}", graph)
    return rounded


def _unused(name: str, graph: ir.Graph) -> str:
    """Return the name, or one like it that no value has: what this pass made may be widened again."""
    taken = {value.name for node in graph for value in node.outputs}
    while name in taken:
        name = f"wide.{name}"
    return name

"""Emulates half precision where it is not supported: operators run in float32, and their results are rounded.

ONNX Runtime's CPU provider lacks bfloat16, and runs float16 through several operators without rounding in between. A
GPU computes each operation in float32 and rounds its result, and so does PyTorch (twice for a product with a bias,
which is one operator here). Casts around an operator express the same in ONNX:

    half -> float32, operator, float32 -> half

The result of an operator that only moves or selects values is representable in half precision already, so the next
operator reads it without a cast.
"""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .tools.building import Nodes

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_ON_CUDA = "Add Cast Gather Gemm Identity MatMul Mul Relu Reshape ScatterElements ScatterND Shape Sub Where"
ON_CUDA = frozenset(_ON_CUDA.split())
"""Operators of SAEs that ONNX Runtime's CUDA provider computes in bfloat16. Expand, Exp, Greater, Pow, ReduceMean and
TopK are missing. Source: its docs/OperatorKernels.md."""

NOWHERE = frozenset(("Cast", "Shape"))
"""Operators that need no float32 on any device."""

_EXACT = (
    "Abs Concat Expand Flatten Gather GatherElements Identity Max Min Neg Pad ReduceMax ReduceMin Relu Reshape "
    "ScatterElements ScatterND Slice Squeeze TopK Transpose Unsqueeze Where"
)
EXACT = frozenset(_EXACT.split())
"""Operators whose results are representable in half precision if their inputs are."""


def widen(model: ir.Model, native: Collection[str] = NOWHERE) -> ir.Model:
    """Run operators that are not `native` in float32 and round their results; the graph must have no control flow."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):  # nodes that other passes added
        model = ShapeInferencePass()(model).model
    graph = model.graph
    widened: dict[ir.Value, ir.Value] = {}  # the float32 version of each half-precision value

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
            rounded = _round_output(graph, node, output)
            if node.op_type in EXACT:
                widened[rounded] = output
    return model


def _round_output(graph: ir.Graph, node: ir.Node, output: ir.Value) -> ir.Value:
    """Make an output of a node float32, and let its rounded value take its place and name."""
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
    """Return an unused name made from `name`: a graph may be widened twice."""
    taken = {value.name for node in graph for value in node.outputs}
    while name in taken:
        name = f"wide.{name}"
    return name

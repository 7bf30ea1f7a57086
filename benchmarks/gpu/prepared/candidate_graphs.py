"""Writes the graphs of the candidates, which `measure/candidates.py` describes. They use the artifact's weights."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from benchmarks.gpu.prepared.artifacts import AS_IS, BIAS_ROWS, GEMM, RIDES, candidate_file
from saeexport.graphs.passes.tools.building import Nodes


def write_candidates(artifact: Path) -> None:
    """Write the candidates of an artifact beside its graphs."""
    for name, rewrite in REWRITES.items():
        model = ir.load(candidate_file(artifact, AS_IS))
        rewrite(model)
        ir.save(RemoveUnusedNodesPass()(model).model, candidate_file(artifact, name))


def _with_gemm(model: ir.Model) -> None:
    """Make a Gemm of each product and its bias."""
    for product, add in _products(model):
        at = Nodes(model.graph, before=add)
        _replace(model, add, at("Gemm", [*product.inputs, add.inputs[1]]))


def _with_bias_row(model: ir.Model) -> None:
    """Append the encoder's bias to its matrix as a row, and a one and zeros to each row of its input.

    ONNX Runtime computes what depends only on constants once, on the CPU, when it loads the graph. Its CPU provider
    does not have `Expand` for bfloat16, nor its CUDA provider `Pad`, so that constants are made in float32 and cast.
    """
    product, encoder = _products(model)[0]
    (x, matrix), bias = product.inputs, encoder.inputs[1]
    assert x is not None
    assert matrix is not None
    assert matrix.shape is not None
    at = Nodes(model.graph, before=encoder)

    def constant(values: list[int], shape: ir.Value) -> ir.Value:
        row = at.cast(at.vector(values), ir.DataType.FLOAT)
        assert x.dtype is not None
        return at.cast(at("Expand", [row, shape]), x.dtype)

    zeros = constant([0], at.vector([BIAS_ROWS - 1, matrix.shape.numpy()[1]]))
    both = at("Concat", [matrix, at("Unsqueeze", [bias, at.vector([0])]), zeros], axis=0)
    tail_shape = at("Concat", [at("Shape", [x], start=0, end=1), at.vector([BIAS_ROWS])], axis=0)
    with_one = at("Concat", [x, constant([1, *[0] * (BIAS_ROWS - 1)], tail_shape)], axis=1)
    _replace(model, encoder, at("MatMul", [with_one, both]))


def _products(model: ir.Model) -> list[tuple[ir.Node, ir.Node]]:
    """Return each MatMul with the Add of its bias."""
    return [(node, next(iter(node.outputs[0].uses())).node) for node in model.graph if node.op_type == "MatMul"]


def _replace(model: ir.Model, node: ir.Node, result: ir.Value) -> None:
    output = node.outputs[0]
    result.type, result.shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [], [output], [result])


REWRITES: dict[str, Callable[[ir.Model], None]] = {
    GEMM: _with_gemm,
    RIDES: _with_bias_row,
}

"""Runs graphs in half precision, which no CPU provider computes, with the reference evaluator of the ONNX package."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from runtime.arrays.tensor import Array, TensorValue


class Gemm(OpRun):
    """Gemm as GPUs compute it: accumulated in float32 and rounded once. Unlike the package's own it uses BLAS."""

    op_domain = ""

    def _run(
        self, a: Array, b: Array, c: Any = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
    ) -> tuple[Array]:
        left, right = (m.astype(np.float32) for m in (a, b))
        product = alpha * ((left.T if transA else left) @ (right.T if transB else right))
        if c is not None:
            product += beta * c.astype(np.float32)
        return (product.astype(a.dtype),)


class MatMul(OpRun):
    """MatMul, accumulated in float32 and rounded once, as `Gemm`."""

    op_domain = ""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return ((a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype),)


class GatherElements(OpRun):
    """GatherElements with a negative axis, which the package's own refuses (onnx 1.23)."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


def evaluate_graph(path: Path, feeds: dict[str, TensorValue]) -> dict[str, Array]:
    """Return the outputs of a graph by name; bfloat16 outputs are widened to float32.

    Args:
        path: File of the graph, beside its weights file.
        feeds: Inputs by name.
    """
    model = onnx.load_model(path)
    given = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    arrays = {name: np.asarray(feed).astype(tensor_dtype_to_np_dtype(given[name])) for name, feed in feeds.items()}
    outputs = ReferenceEvaluator(model, new_ops=[Gemm, MatMul, GatherElements]).run(None, arrays)
    bfloat16 = tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    return {
        value.name: y.astype(np.float32) if y.dtype == bfloat16 else y
        for value, y in zip(model.graph.output, outputs, strict=True)
    }

"""Runs graphs in half precision on a CPU, whose provider lacks most operators for it.

A GPU computes each operator in float32 and rounds its result. The pass `widen` says the same with casts around each
operator. It is applied to the file of a graph as it was written, and ONNX Runtime runs the result.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from runtime.arrays.dtypes import widened
from runtime.arrays.tensor import Array, TensorValue
from runtime.devices.start import CPU, Device, is_from_onnx_runtime, start_session
from runtime.errors import ArtifactError, SAEError
from runtime.parity.running import KeptGraphs

from ..graphs.passes.tools.building import Nodes
from ..graphs.passes.widen import HALF, widen


class HalfGraphs:
    """Graphs in half precision, each loaded when it is first run; see `runtime.parity.running.KeptGraphs`."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[ort.InferenceSession, dict[str, np.dtype[Any]]]] = {}
        self._kept = KeptGraphs(lambda graph: self._loaded.pop(graph, None) and None)

    def run(self, graph: str, path: Path, feeds: dict[str, TensorValue]) -> dict[str, Array]:
        """Return the outputs of a graph by name; those of bfloat16 are float32 arrays.

        Args:
            graph: Name of the graph.
            path: File of the graph, beside its weights file.
            feeds: Inputs by name.
        """
        self._kept.make_room(graph)
        if graph not in self._loaded:
            self._loaded[graph] = _start(path)
        session, kinds = self._loaded[graph]
        try:
            outputs = session.run(None, {name: widened_feed(feed) for name, feed in feeds.items()})
        except Exception as error:
            if not is_from_onnx_runtime(error):
                raise
            raise SAEError(f"ONNX Runtime cannot run it with casts around each operator: {error}") from error
        return {name: y.astype(kinds[name]) for name, y in zip(kinds, outputs, strict=True)}


def widened_feed(feed: TensorValue) -> Array:
    """Return an input as the widened graph takes it: float32 for half precision."""
    array = widened(np.asarray(feed))
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _start(path: Path) -> tuple[ort.InferenceSession, dict[str, np.dtype[Any]]]:
    """Return a session of the widened graph, and the dtypes of the arrays that the graph's own outputs stand for."""
    model = widen(ir.load(path))
    kinds = {str(value.name): _array_dtype(value) for value in model.graph.outputs}
    _take_and_return_float32(model.graph)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".widened.", suffix=".onnx") as file:
        file.write(ir.to_proto(model).SerializeToString())
        file.flush()
        try:
            return start_session(file.name, Device(CPU), arena=False), kinds
        except Exception as error:
            if not is_from_onnx_runtime(error):
                raise
            raise ArtifactError(f"ONNX Runtime cannot load it with casts around each operator: {error}") from error


def _array_dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype == ir.DataType.BFLOAT16:
        return np.dtype(np.float32)
    assert value.dtype is not None
    return value.dtype.numpy()


def _take_and_return_float32(graph: ir.Graph) -> None:
    """Give a graph float32 inputs and outputs in place of those in half precision, which Python can hardly pass."""
    first = next(iter(graph))
    for i, value in enumerate(list(graph.inputs)):
        if value.dtype in HALF:
            wide = ir.val(str(value.name), dtype=ir.DataType.FLOAT, shape=value.shape)
            value.name = f"half.{value.name}"
            cast = Nodes(graph, before=first).cast(wide, value.dtype)
            ir.convenience.replace_all_uses_with(value, cast)
            graph.inputs[i] = wide
    for i, value in enumerate(list(graph.outputs)):
        if value.dtype in HALF:
            name, value.name = value.name, f"half.{value.name}"
            wide = Nodes(graph).cast(value, ir.DataType.FLOAT)
            wide.name, wide.shape, wide.type = name, value.shape, ir.TensorType(ir.DataType.FLOAT)
            graph.outputs[i] = wide

"""Infers the dtype and the shape of every value of a host.

ONNX's own inference stops at operators of other domains. ONNX Runtime knows them, and tells the types of a model's
outputs: where a type is missing, the value is made an output of a model that is loaded and not run.
"""

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from runtime.arrays.dtypes import DTYPES
from runtime.errors import GraftError

from .sessions import start_on_cpu

NAMES = {ir.DataType(dtype.onnx): name for name, dtype in DTYPES.items()} | {ir.DataType.BOOL: "bool"}
"""The dtypes that the inputs, outputs and hooks of a host may have, by their numbers in ONNX."""

TYPES = {f"tensor({dtype.onnx_name})": ir.DataType(dtype.onnx) for dtype in DTYPES.values()}
TYPES["tensor(bool)"] = ir.DataType.BOOL
"""The dtypes by their names in ONNX Runtime."""


def infer_types(model: ir.Model, folder: Path) -> ir.Model:
    """Return a host in which the values of the outermost graph have dtypes and shapes, as far as they can be inferred.

    Args:
        model: The host.
        folder: Folder that its external data is relative to.

    Raises:
        GraftError: The host is not valid ONNX.
    """
    _correct_constants(model.graph)
    if not _unknown(model):
        return model
    try:
        model = ShapeInferencePass()(model).model
    except onnx.shape_inference.InferenceError as error:
        raise GraftError(f"The host in {folder} is not valid ONNX: {error}") from error
    if unknown := _unknown(model):
        _infer_with_onnxruntime(model, folder, unknown)
    return model


def _correct_constants(graph: ir.Graph) -> None:
    """Give the outputs of `Constant` the shapes of their tensors; onnxruntime-genai declares all of them as scalars."""
    for node in graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            node.outputs[0].shape = ir.Shape(list(tensor.shape.numpy()))


def _unknown(model: ir.Model) -> list[ir.Value]:
    return [
        value
        for node in model.graph
        for value in node.outputs
        if value.name and (value.dtype is None or value.shape is None)
    ]


def _infer_with_onnxruntime(model: ir.Model, folder: Path, values: list[ir.Value]) -> None:
    proto = ir.to_proto(model)
    own = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=str(value.name)) for value in values if value.name not in own)
    try:
        session = start_on_cpu(proto.SerializeToString(), folder, optimize=False)
    except Exception as error:  # its exceptions do not share a base class
        raise GraftError(f"ONNX Runtime cannot load the host in {folder}: {error}") from error
    found = {output.name: output for output in session.get_outputs()}
    for value in values:
        output = found[str(value.name)]
        if output.type in TYPES:
            value.type = ir.TensorType(TYPES[output.type])
            if output.shape is not None:
                value.shape = ir.Shape(output.shape)

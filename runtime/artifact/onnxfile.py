"""Reads from an ONNX file which of its initializers are stored in another file, and where.

Only the fields that say so are read (`protobuf.py`). The result is a table of a dozen entries.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import Array
from ..errors import ArtifactError, IntegrityError
from . import onnxproto as proto
from .protobuf import UNREADABLE, encode, fields, integers, submessages, text
from .strict_json import shown
from .tensorfile import MOST_DIMENSIONS

LOCATION = "location"

NUMPY_DTYPES: dict[int, "np.dtype[Any]"] = {
    **{dtype.onnx: dtype.numpy for dtype in DTYPES.values()},
    9: np.dtype(np.bool_),
}
"""The dtypes of stored initializers by their number in ONNX, `TensorProto.DataType`."""


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose bytes are in another file.

    Attributes:
        element_type: Number of its dtype in ONNX.
        shape: Its shape.
        location: Name of the file.
        offset: Offset in the file, in bytes.
        nbytes: Size in bytes.
    """

    element_type: int
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int

    def view(self, content: Array) -> Array:
        """Return the tensor as a view of the content of its file, an array of bytes.

        Raises:
            ValueError: The dtype is not known, no array has the shape, or the tensor does not fit into the file.
        """
        dtype = NUMPY_DTYPES.get(self.element_type)
        if (
            dtype is None
            or len(self.shape) > MOST_DIMENSIONS
            or math.prod(filter(None, self.shape)) * dtype.itemsize >= 2**63
            or math.prod(self.shape) * dtype.itemsize != self.nbytes
        ):
            raise ValueError(f"{shown(self.shape)} of the ONNX type {self.element_type} in {self.nbytes} bytes")
        if self.offset + self.nbytes > content.size:
            raise ValueError(f"bytes {self.offset} to {self.offset + self.nbytes} of a file with {content.size}")
        return content[self.offset : self.offset + self.nbytes].view(dtype).reshape(self.shape)


def external_tensors(model: bytes, path: Path) -> dict[str, ExternalTensor]:
    """Return the initializers of a model that are stored in another file, by name.

    Args:
        model: Content of the ONNX file.
        path: Path of the file, for the error.

    Raises:
        ArtifactError: The file is not ONNX.
    """
    try:
        return {
            name: tensor
            for graph in submessages(memoryview(model), proto.MODEL_GRAPH)
            for name, tensor in map(_tensor, submessages(graph, proto.GRAPH_INITIALIZER))
            if tensor is not None
        }
    except UNREADABLE as error:
        raise not_onnx(path, error) from None


def not_onnx(path: Path, error: Exception) -> ArtifactError:
    """Return the error of a file that cannot be read as ONNX, from what reading it raised."""
    return ArtifactError(f"{path} is not an ONNX model: {type(error).__name__}: {error}. Copy the whole folder again.")


def with_locations(model: bytes, names: Mapping[str, str]) -> bytes:
    """Return a model whose initializers are stored in files of other names; the model itself if no name differs.

    Args:
        model: Content of the ONNX file.
        names: New names of files, by the name that the model has for them.
    """
    if all(name == new for name, new in names.items()):
        return model

    def entry(message: memoryview) -> bytes | memoryview:
        key, value = (text(dict(fields(message))[field]) for field in (proto.KEY, proto.VALUE))
        if key != LOCATION:
            return message
        return encode([(proto.KEY, key.encode()), (proto.VALUE, names.get(value, value).encode())])

    def replaced(message: memoryview, path: tuple[int, ...]) -> bytes | memoryview:
        if not path:
            return entry(message)
        return encode(
            (field, replaced(value, path[1:]) if field == path[0] and not isinstance(value, int) else value)
            for field, value in fields(message)
        )

    return bytes(replaced(memoryview(model), (proto.MODEL_GRAPH, proto.GRAPH_INITIALIZER, proto.EXTERNAL_DATA)))


def initializers(graph: memoryview) -> dict[str, memoryview]:
    """Return the `TensorProto`s of the initializers of a `GraphProto` by name."""
    return {initializer_name(message): message for message in submessages(graph, proto.GRAPH_INITIALIZER)}


def initializer_name(message: memoryview) -> str:
    """Return the name of an initializer, a `TensorProto`."""
    return next((text(value) for field, value in fields(message) if field == proto.NAME), "")


def initializer_shape(message: memoryview) -> tuple[int, ...]:
    """Return the shape of an initializer, wherever its values are stored."""
    shape: list[int] = []
    for field, value in fields(message):
        if field == proto.DIMS:  # packed into one value, or one by one
            shape += [value] if isinstance(value, int) else integers(value)
    return tuple(shape)


@dataclass(frozen=True, eq=False)
class Parameter:
    """The value of an initializer; `element_type` is the number of its dtype in ONNX."""

    element_type: int
    array: Array


def parameters(model: bytes, path: Path, contents: Mapping[str, Array]) -> dict[str, Parameter]:
    """Return the initializers that a model keeps in other files, as views of their content, by name.

    Args:
        model: Content of the ONNX file.
        path: Path of the ONNX file, for the error.
        contents: Content of each file that the model may refer to, an array of bytes, by the name that it refers to.

    Raises:
        ArtifactError: The file is not ONNX.
        IntegrityError: It refers to another file, or to bytes that a file does not have.
    """
    found = {}
    for name, tensor in external_tensors(model, path).items():
        if tensor.location not in contents:
            raise IntegrityError(f"{path} keeps {name} in {tensor.location!r}, and not in {' or '.join(contents)}.")
        try:
            found[name] = Parameter(tensor.element_type, tensor.view(contents[tensor.location]))
        except ValueError as error:
            raise IntegrityError(f"{path} says that {name} is {error}. Export the SAE again.") from None
    return found


def _tensor(message: memoryview) -> tuple[str, ExternalTensor | None]:
    """Return the name of an initializer, and where it is stored if it is stored in another file."""
    name, element_type, is_external = "", 0, False
    where = {}
    for field, value in fields(message):
        if field == proto.DATA_TYPE and isinstance(value, int):
            element_type = value
        elif field == proto.DATA_LOCATION:
            is_external = value == proto.EXTERNAL
        elif field == proto.NAME:
            name = text(value)
        elif field == proto.EXTERNAL_DATA and not isinstance(value, int):
            entry = dict(fields(value))
            where[text(entry[proto.KEY])] = text(entry[proto.VALUE])
    if not is_external:
        return name, None
    offset, nbytes = int(where.get("offset", "0")), int(where["length"])
    if offset < 0 or nbytes < 0:
        raise ValueError(f"{name}: offset {offset}, length {nbytes}")
    return name, ExternalTensor(element_type, initializer_shape(message), where[LOCATION], offset, nbytes)

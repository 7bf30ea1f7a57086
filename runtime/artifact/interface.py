"""What the file of a graph says about itself: its inputs, its outputs and its metadata."""

from collections.abc import Iterable
from dataclasses import dataclass

from . import onnxproto as proto
from .protobuf import fields, submessages, text


@dataclass(frozen=True)
class ValueType:
    """The name, the element type by its number in ONNX, and the shape of an input or output of a graph."""

    name: str
    element_type: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Interface:
    """The inputs and the outputs of a graph, in order, and the metadata of its model."""

    inputs: tuple[ValueType, ...]
    outputs: tuple[ValueType, ...]
    metadata: dict[str, str]


def read_interface(model: bytes) -> Interface:
    """Return what the content of an ONNX file says about itself; one of `UNREADABLE` is raised if it is not ONNX."""
    (graph,) = submessages(memoryview(model), proto.MODEL_GRAPH)
    inputs, outputs = (
        tuple(map(_value_type, by_name(submessages(graph, field)).values()))
        for field in (proto.GRAPH_INPUT, proto.GRAPH_OUTPUT)
    )
    entries = (dict(fields(entry)) for entry in submessages(memoryview(model), proto.MODEL_METADATA))
    return Interface(inputs, outputs, {text(entry[proto.KEY]): text(entry[proto.VALUE]) for entry in entries})


def by_name(values: Iterable[memoryview]) -> dict[str, memoryview]:
    """Return the `ValueInfoProto`s of inputs or outputs by name, in order."""
    return {_name(value): value for value in values}


def _name(value: memoryview) -> str:
    return next((text(name) for name in submessages(value, proto.VALUE_NAME)), "")


def _value_type(message: memoryview) -> ValueType:
    element_type, shape = 0, list[int | str]()
    for kind in submessages(message, proto.VALUE_TYPE):
        for tensor in submessages(kind, proto.TENSOR_TYPE):
            for field, value in fields(tensor):
                if field == proto.ELEMENT_TYPE and isinstance(value, int):
                    element_type = value
                elif field == proto.SHAPE and not isinstance(value, int):
                    for dimension in submessages(value, proto.DIMENSION):
                        size = dict(fields(dimension))
                        known = size.get(proto.SIZE)
                        shape.append(known if isinstance(known, int) else text(size.get(proto.SYMBOL, 0)))
    return ValueType(_name(message), element_type, tuple(shape))

"""Reads the operators of an ONNX file."""

from dataclasses import dataclass

from . import onnxproto as proto
from .protobuf import fields, text


@dataclass(frozen=True)
class OnnxNode:
    """An operator of a graph.

    Attributes:
        message: Its `NodeProto`.
        operator: Name of the operator.
        inputs: Names of its inputs; "" for one that is left out.
        outputs: Names of its outputs.
        integers: Its attributes that are integers.
        has_graphs: Whether an attribute is a graph, which may read any value.
    """

    message: memoryview
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]
    has_graphs: bool

    @classmethod
    def of(cls, message: memoryview) -> "OnnxNode":
        """Return the operator of a `NodeProto`."""
        operator, has_graphs = "", False
        names: dict[int, list[str]] = {proto.NODE_INPUT: [], proto.NODE_OUTPUT: []}
        integers: dict[str, int] = {}
        for field, value in fields(message):
            if field in names:
                names[field].append(text(value))
            elif field == proto.OPERATOR:
                operator = text(value)
            elif field == proto.ATTRIBUTE and not isinstance(value, int):
                attribute = dict(fields(value))
                has_graphs |= proto.ATTRIBUTE_GRAPH in attribute or proto.ATTRIBUTE_GRAPHS in attribute
                if isinstance(number := attribute.get(proto.ATTRIBUTE_INT), int):
                    integers[text(attribute[proto.ATTRIBUTE_NAME])] = number
        return cls(
            message, operator, tuple(names[proto.NODE_INPUT]), tuple(names[proto.NODE_OUTPUT]), integers, has_graphs
        )

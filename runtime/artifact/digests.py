"""Digests of the values of a graph, by which a value is recognised in another graph.

A value has the same digest in two graphs only if the same operators compute it from the same inputs and the same bytes
of the weights file. The names of values do not matter, apart from inputs and from values whose digest is given.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from . import onnxproto as proto
from .interface import by_name
from .onnxfile import initializer_name
from .protobuf import encode, fields, submessages, text


@dataclass(frozen=True)
class Node:
    """An operator: its `NodeProto`, the values that it reads, also in its subgraphs, and those that it computes."""

    message: memoryview
    reads: frozenset[str]
    outputs: tuple[str, ...]


def digest_values(model: bytes, given: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[Node]]:
    """Return the digest of each input, initializer and result of an operator of a graph, by name, and its operators.

    Args:
        model: Content of the ONNX file. A digest says nothing about the functions of a model.
        given: Digests of inputs, by name.

    Raises:
        Exception: One of `UNREADABLE`, if the file is not ONNX.
    """
    (graph,) = submessages(memoryview(model), proto.MODEL_GRAPH)
    operators = _digest(*map(bytes, submessages(memoryview(model), proto.MODEL_OPSETS)))
    inputs = by_name(submessages(graph, proto.GRAPH_INPUT))
    digests = {name: given.get(name) or _digest(operators, name.encode()) for name in inputs}
    return digests, _follow(graph, digests, 0)


def _follow(graph: memoryview, digests: dict[str, bytes], depth: int) -> list[Node]:
    """Return the operators of a graph, and add the digests of its initializers and of their results to `digests`."""
    for message in submessages(graph, proto.GRAPH_INITIALIZER):
        digests[initializer_name(message)] = _tensor_digest(message)
    nodes = []
    for message in submessages(graph, proto.GRAPH_NODE):
        node, digest = _read_node(message, digests, depth)
        digests.update((name, _digest(digest, bytes([i]))) for i, name in enumerate(node.outputs) if name)
        nodes.append(node)
    return nodes


def _read_node(message: memoryview, digests: Mapping[str, bytes], depth: int) -> tuple[Node, bytes]:
    """Return an operator, and a digest of what it does and of what it reads."""
    names: dict[int, list[str]] = {proto.NODE_INPUT: [], proto.NODE_OUTPUT: []}
    kinds, attributes, reads = [b"", b""], [], set()
    for field, value in fields(message):
        if field in names:
            names[field].append(text(value))
        elif field in (proto.OPERATOR, proto.DOMAIN):
            kinds[field == proto.DOMAIN] = text(value).encode()
        elif field == proto.ATTRIBUTE and not isinstance(value, int):
            digest, outer = _read_attribute(value, digests, depth)
            attributes.append(digest)
            reads |= outer
    inputs = [digests[name] if name else b"" for name in names[proto.NODE_INPUT]]
    reads |= {name for name in names[proto.NODE_INPUT] if name}
    digest = _digest(*kinds, *inputs, b"attributes", *sorted(attributes))
    return Node(message, frozenset(reads), tuple(names[proto.NODE_OUTPUT])), digest


def _read_attribute(message: memoryview, digests: Mapping[str, bytes], depth: int) -> tuple[bytes, set[str]]:
    """Return the digest of an attribute, and the values around the operator that its graphs read."""
    parts, reads = [], set()
    for field, value in fields(message):
        if isinstance(value, int):
            parts.append(f"{field} {value}".encode())
        elif field in (proto.ATTRIBUTE_GRAPH, proto.ATTRIBUTE_GRAPHS):
            inner = dict(digests)
            arguments = by_name(submessages(value, proto.GRAPH_INPUT))
            inner.update((name, _digest(b"argument", bytes([depth, i]))) for i, name in enumerate(arguments))
            nodes = _follow(value, inner, depth + 1)
            results = [inner[name] for name in by_name(submessages(value, proto.GRAPH_OUTPUT))]
            own = {name for node in nodes for name in node.outputs} | {*arguments}
            own |= {initializer_name(tensor) for tensor in submessages(value, proto.GRAPH_INITIALIZER)}
            reads |= {name for node in nodes for name in node.reads} - own
            parts += [b"graph", *results]
        elif field in (proto.ATTRIBUTE_TENSOR, proto.ATTRIBUTE_TENSORS):
            parts.append(_tensor_digest(value))
        else:
            parts.append(bytes([field]) + bytes(value))
    return _digest(*parts), reads


def _tensor_digest(message: memoryview) -> bytes:
    """Return a digest of a tensor, or of the place where it is stored, but not of its name."""
    return _digest(b"tensor", encode((field, value) for field, value in fields(message) if field != proto.NAME))


def _digest(*parts: bytes) -> bytes:
    """Return the sha256 of a list of bytes, which also depends on where each of them ends."""
    return hashlib.sha256(b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "big"), part))).digest()

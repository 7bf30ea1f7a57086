"""Finds the stages that graphs have in common, and cuts them out, so that a device can load each of them once.

The encoder's and the decoder's matrix are most of an SAE, and ONNX Runtime keeps a repacked copy of each in every
session that multiplies by it. `split` cuts a graph of the whole SAE into its two stages, and `rest_of` cuts out of
another graph what is left to do after these stages. Both decide by digests: a value has the same digest in two graphs
only if the same operators compute it from the same inputs and the same bytes of the weights file, so a graph that
computes a stage in its own way keeps it. The names of values do not matter, apart from inputs and hooks.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3, `ModelProto`, `GraphProto`, `NodeProto` and
`AttributeProto`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .names import FEATURE_HOOKS
from .onnxfile import DIMS, EXTERNAL_DATA, GRAPH_INITIALIZER, MODEL_GRAPH, NAME, initializer_name
from .protobuf import encode, fields, integers, submessages, text

MODEL_OPSETS, MODEL_METADATA, MODEL_FUNCTIONS = 8, 14, 25
GRAPH_NODE, GRAPH_NAME, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 11, 12
NODE_INPUT, NODE_OUTPUT, OPERATOR, ATTRIBUTE, DOMAIN = 1, 2, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 1, 5, 6, 10, 11
VALUE_NAME, VALUE_TYPE = 1, 2
TENSOR_TYPE, ELEMENT_TYPE, SHAPE, DIMENSION = 1, 1, 2, 1
SIZE, SYMBOL = 1, 2

UNREADABLE = (ValueError, IndexError, KeyError, StopIteration)
"""The errors that reading a damaged graph raises."""


@dataclass(frozen=True)
class _Node:
    """An operator: its `NodeProto`, the values that it reads, also in its subgraphs, and those that it computes."""

    message: memoryview
    reads: frozenset[str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ValueType:
    """The name, the element type by its number in ONNX, and the shape of an input or output of a graph."""

    name: str
    element_type: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Part:
    """A model that was cut out of a graph.

    Attributes:
        model: The model, which refers to the weights file as the graph does.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph:
    """A graph, and a digest of each of its values.

    Attributes:
        digests: The digest of each input, initializer and result of an operator, by name.
        inputs: The inputs, in order.
        outputs: The outputs, in order.
        metadata: The metadata of the model.

    Args:
        model: Content of the ONNX file.
        hooks: Digests of hooks, for a graph that has them as inputs.

    Raises:
        ValueError: The file is not ONNX, or it has functions. The other errors in `UNREADABLE` say that it is not ONNX.
    """

    def __init__(self, model: bytes, hooks: Mapping[str, bytes] | None = None) -> None:
        self._model = memoryview(model)
        if any(True for _ in submessages(self._model, MODEL_FUNCTIONS)):
            raise ValueError("an operator may be a function of the model, which a digest does not cover")
        (self._graph,) = submessages(self._model, MODEL_GRAPH)
        self._inputs = _by_name(submessages(self._graph, GRAPH_INPUT))
        self._outputs = _by_name(submessages(self._graph, GRAPH_OUTPUT))
        self._initializers = {
            initializer_name(message): message for message in submessages(self._graph, GRAPH_INITIALIZER)
        }
        operators = _digest(*map(bytes, submessages(self._model, MODEL_OPSETS)))
        self.digests: dict[str, bytes] = {name: _digest(operators, name.encode()) for name in self._inputs}
        self.digests |= {name: digest for name, digest in (hooks or {}).items() if name in self._inputs}
        self._nodes = _follow(self._graph, self.digests, 0)
        self.inputs = [_value_type(message) for message in self._inputs.values()]
        self.outputs = [_value_type(message) for message in self._outputs.values()]
        entries = (dict(fields(entry)) for entry in submessages(self._model, MODEL_METADATA))
        self.metadata = {text(entry[1]): text(entry[2]) for entry in entries}

    def type_of(self, output: str) -> bytes:
        """Return the `TypeProto` of an output."""
        return next(bytes(kind) for kind in submessages(self._outputs[output], VALUE_TYPE))

    def cut(self, outputs: Sequence[str], given: Mapping[str, bytes]) -> Part:
        """Return the part of the graph that computes some outputs from its inputs and from values that are given.

        Args:
            outputs: Names of outputs of the graph.
            given: Values that the part reads instead of computing them, by name, with their `TypeProto`.
        """
        nodes = self._needed(outputs, given)
        reads = {name for node in nodes for name in node.reads} | {*outputs}
        inputs = {name: bytes(message) for name, message in self._inputs.items() if name in reads}
        inputs |= {
            name: encode([(VALUE_NAME, name.encode()), (VALUE_TYPE, kind)])
            for name, kind in given.items()
            if name in reads
        }
        graph = encode(
            [
                *((GRAPH_NODE, node.message) for node in nodes),
                (GRAPH_NAME, b"part"),
                *((GRAPH_INITIALIZER, message) for name, message in self._initializers.items() if name in reads),
                *((GRAPH_INPUT, message) for message in inputs.values()),
                *((GRAPH_OUTPUT, self._outputs[name]) for name in outputs),
            ]
        )
        kept = [(field, value) for field, value in fields(self._model) if field != MODEL_GRAPH]
        return Part(encode([*kept, (MODEL_GRAPH, graph)]), tuple(inputs), tuple(outputs))

    def parameters_of(self, outputs: Iterable[str], given: Iterable[str], smallest: int) -> set[str]:
        """Return the parameters of at least `smallest` elements that some outputs need if some values are given."""
        nodes = self._needed(outputs, given)
        return self._large({name for node in nodes for name in node.reads}, smallest)

    def _needed(self, outputs: Iterable[str], given: Iterable[str]) -> list[_Node]:
        stops, wanted, found = {*given}, {*outputs} - {*given}, []
        for node in reversed(self._nodes):
            if not wanted.isdisjoint(node.outputs):
                found.append(node)
                wanted |= node.reads - stops
        return found[::-1]

    def _large(self, names: Iterable[str], smallest: int) -> set[str]:
        messages = {name: self._initializers[name] for name in names if name in self._initializers}
        return {name for name, message in messages.items() if _elements_elsewhere(message) >= smallest}


@dataclass(frozen=True)
class Stages:
    """The stages of an SAE, cut out of the graph that computes all its hooks.

    Attributes:
        graph: That graph.
        digests: The digests of the hooks in it.
        types: The `TypeProto` of each hook.
        parts: The encoder, from the input to the hooks with one value per feature; and the rest, from the input and
            these hooks to the other hooks.
    """

    graph: Graph
    digests: dict[str, bytes]
    types: dict[str, bytes]
    parts: tuple[Part, Part]


def split(model: bytes, smallest: int) -> Stages | None:
    """Return the stages of a graph that computes all hooks.

    None if they are not worth a session each: the graph has no parameter of at least `smallest` elements, or both
    stages need the same one.
    """
    try:
        return _split(Graph(model), smallest)
    except UNREADABLE:  # ONNX Runtime says what is wrong with it
        return None


def _split(graph: Graph, smallest: int) -> Stages | None:
    names = [output.name for output in graph.outputs]
    features = [name for name in names if name in FEATURE_HOOKS]
    others = [name for name in names if name not in FEATURE_HOOKS]
    in_encoder = graph.parameters_of(features, (), smallest)
    in_rest = graph.parameters_of(others, features, smallest)
    if len(features) != len(FEATURE_HOOKS) or not others or not in_encoder or in_encoder & in_rest:
        return None
    types = {name: graph.type_of(name) for name in names}
    encoder = graph.cut(features, {})
    rest = graph.cut(others, {name: types[name] for name in features})
    return Stages(graph, {name: graph.digests[name] for name in names}, types, (encoder, rest))


@dataclass(frozen=True)
class Remainder:
    """What is left of a graph if the stages are computed elsewhere.

    Attributes:
        graph: The graph.
        hooks: The hook of the stages that each of its values is, by name of the value.
        part: What has to be computed from its inputs and these values; None if nothing has to be.
    """

    graph: Graph
    hooks: dict[str, str]
    part: Part | None


def rest_of_whole(stages: Stages) -> Remainder:
    """Return that nothing is left of the graph that was split into the stages."""
    return Remainder(stages.graph, {hook: hook for hook in stages.digests}, None)


def rest_of(model: bytes, stages: Stages, smallest: int) -> Remainder | None:
    """Return what is left of a graph after the stages; None if it does not compute them as they do.

    Args:
        model: Content of the graph.
        stages: The stages.
        smallest: Smallest number of elements of a parameter that is worth sharing.
    """
    try:
        graph = Graph(model, stages.digests)
    except UNREADABLE:  # ONNX Runtime says what is wrong with it
        return None
    inputs = {value.name for value in graph.inputs}
    # A stage that computes a hook that the graph is given, such as an edited one, would go on from its own.
    usable = [part for part in stages.parts if inputs.isdisjoint(part.outputs)]
    hooks = {stages.digests[hook]: hook for part in usable for hook in part.outputs}
    found = {name: hooks[digest] for name, digest in graph.digests.items() if digest in hooks and name not in inputs}
    if len({*found.values()}) < len(found):  # the graph computes a hook twice
        return None
    outputs = [value.name for value in graph.outputs if value.name not in found]
    all_outputs = [value.name for value in graph.outputs]
    before = graph.parameters_of(all_outputs, (), smallest)
    after = graph.parameters_of(outputs, found, smallest)
    if not before - after:
        return None
    given = {name: stages.types[hook] for name, hook in found.items()}
    return Remainder(graph, found, graph.cut(outputs, given) if outputs else None)


def _follow(graph: memoryview, digests: dict[str, bytes], depth: int) -> list[_Node]:
    """Return the operators of a graph, and add the digests of its initializers and of their results to `digests`."""
    for message in submessages(graph, GRAPH_INITIALIZER):
        digests[initializer_name(message)] = _tensor_digest(message)
    nodes = []
    for message in submessages(graph, GRAPH_NODE):
        node, digest = _read_node(message, digests, depth)
        digests.update((name, _digest(digest, bytes([i]))) for i, name in enumerate(node.outputs) if name)
        nodes.append(node)
    return nodes


def _read_node(message: memoryview, digests: Mapping[str, bytes], depth: int) -> tuple[_Node, bytes]:
    """Return an operator, and a digest of what it does and of what it reads."""
    names: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: []}
    kinds, attributes, reads = [b"", b""], [], set()
    for field, value in fields(message):
        if field in names:
            names[field].append(text(value))
        elif field in (OPERATOR, DOMAIN):
            kinds[field == DOMAIN] = text(value).encode()
        elif field == ATTRIBUTE and not isinstance(value, int):
            digest, outer = _read_attribute(value, digests, depth)
            attributes.append(digest)
            reads |= outer
    inputs = [digests[name] if name else b"" for name in names[NODE_INPUT]]
    reads |= {name for name in names[NODE_INPUT] if name}
    digest = _digest(*kinds, *inputs, b"attributes", *sorted(attributes))
    return _Node(message, frozenset(reads), tuple(names[NODE_OUTPUT])), digest


def _read_attribute(message: memoryview, digests: Mapping[str, bytes], depth: int) -> tuple[bytes, set[str]]:
    """Return the digest of an attribute, and the values around the operator that its graphs read."""
    parts, reads = [], set()
    for field, value in fields(message):
        if isinstance(value, int):
            parts.append(f"{field} {value}".encode())
        elif field in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            inner = dict(digests)
            arguments = _by_name(submessages(value, GRAPH_INPUT))
            inner.update((name, _digest(b"argument", bytes([depth, i]))) for i, name in enumerate(arguments))
            nodes = _follow(value, inner, depth + 1)
            results = [inner[name] for name in _by_name(submessages(value, GRAPH_OUTPUT))]
            own = {name for node in nodes for name in node.outputs} | {*arguments}
            own |= {initializer_name(tensor) for tensor in submessages(value, GRAPH_INITIALIZER)}
            reads |= {name for node in nodes for name in node.reads} - own
            parts += [b"graph", *results]
        elif field in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            parts.append(_tensor_digest(value))
        else:
            parts.append(bytes([field]) + bytes(value))
    return _digest(*parts), reads


def _tensor_digest(message: memoryview) -> bytes:
    """Return a digest of a tensor, or of the place where it is stored, but not of its name."""
    return _digest(b"tensor", encode((field, value) for field, value in fields(message) if field != NAME))


def _digest(*parts: bytes) -> bytes:
    """Return the sha256 of a list of bytes, which also depends on where each of them ends."""
    return hashlib.sha256(b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "big"), part))).digest()


def _elements_elsewhere(message: memoryview) -> int:
    """Return the number of elements of an initializer that is stored in another file; 0 for others."""
    elements, elsewhere = 1, False
    for field, value in fields(message):
        if field == DIMS:
            for size in [value] if isinstance(value, int) else integers(value):
                elements *= size
        elsewhere |= field == EXTERNAL_DATA
    return elements if elsewhere else 0


def _by_name(values: Iterable[memoryview]) -> dict[str, memoryview]:
    """Return the `ValueInfoProto`s of inputs or outputs by name, in order."""
    return {text(next(submessages(value, VALUE_NAME))): value for value in values}


def _value_type(message: memoryview) -> ValueType:
    name, element_type = text(next(submessages(message, VALUE_NAME))), 0
    shape: list[int | str] = []
    for kind in submessages(message, VALUE_TYPE):
        for tensor in submessages(kind, TENSOR_TYPE):
            for field, value in fields(tensor):
                if field == ELEMENT_TYPE and isinstance(value, int):
                    element_type = value
                elif field == SHAPE and not isinstance(value, int):
                    for dimension in submessages(value, DIMENSION):
                        size = dict(fields(dimension))
                        known = size.get(SIZE)
                        shape.append(known if isinstance(known, int) else text(size.get(SYMBOL, 0)))
    return ValueType(name, element_type, tuple(shape))

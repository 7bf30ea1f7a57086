"""Finds the stages that graphs have in common, and cuts them out, so that a device can load each of them once.

The encoder's and the decoder's matrix are most of an SAE, and ONNX Runtime keeps a repacked copy of each in every
session that multiplies by it. `split` cuts a graph of the whole SAE into its two stages, and `rest_of` cuts out of
another graph what is left to do after these stages. Both decide by digests (`digests.py`), so that a graph that
computes a stage in its own way keeps it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from . import onnxproto as proto
from .digests import Node, digest_values
from .interface import by_name, read_interface
from .names import FEATURE_HOOKS
from .onnxfile import initializer_shape, initializers
from .protobuf import UNREADABLE, encode, fields, submessages


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
        interface: The inputs, the outputs and the metadata.
        digests: The digest of each value, by name; see `digest_values`.

    Args:
        model: Content of the ONNX file.
        hooks: Digests of hooks, for a graph that has them as inputs.

    Raises:
        ValueError: The file is not ONNX, or it has functions. The other errors in `UNREADABLE` say that it is not ONNX.
    """

    def __init__(self, model: bytes, hooks: Mapping[str, bytes] | None = None) -> None:
        self._model = memoryview(model)
        if any(True for _ in submessages(self._model, proto.MODEL_FUNCTIONS)):
            raise ValueError("an operator may be a function of the model, which a digest does not cover")
        (self._graph,) = submessages(self._model, proto.MODEL_GRAPH)
        self._inputs = by_name(submessages(self._graph, proto.GRAPH_INPUT))
        self._outputs = by_name(submessages(self._graph, proto.GRAPH_OUTPUT))
        self._initializers = initializers(self._graph)
        self.interface = read_interface(model)
        self.digests, self._nodes = digest_values(model, hooks or {})

    def type_of(self, output: str) -> bytes:
        """Return the `TypeProto` of an output."""
        kind, *_ = submessages(self._outputs[output], proto.VALUE_TYPE)  # ValueError: it does not have one
        return bytes(kind)

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
            name: encode([(proto.VALUE_NAME, name.encode()), (proto.VALUE_TYPE, kind)])
            for name, kind in given.items()
            if name in reads
        }
        graph = encode(
            [
                *((proto.GRAPH_NODE, node.message) for node in nodes),
                (proto.GRAPH_NAME, b"part"),
                *((proto.GRAPH_INITIALIZER, message) for name, message in self._initializers.items() if name in reads),
                *((proto.GRAPH_INPUT, message) for message in inputs.values()),
                *((proto.GRAPH_OUTPUT, self._outputs[name]) for name in outputs),
            ]
        )
        kept = [(field, value) for field, value in fields(self._model) if field != proto.MODEL_GRAPH]
        return Part(encode([*kept, (proto.MODEL_GRAPH, graph)]), tuple(inputs), tuple(outputs))

    def parameters_of(self, outputs: Iterable[str], given: Iterable[str], smallest: int) -> set[str]:
        """Return the parameters of at least `smallest` elements that some outputs need if some values are given."""
        reads = {name for node in self._needed(outputs, given) for name in node.reads}
        found = {name: message for name, message in self._initializers.items() if name in reads}
        return {name for name, message in found.items() if _elements_elsewhere(message) >= smallest}

    def _needed(self, outputs: Iterable[str], given: Iterable[str]) -> list[Node]:
        stops, wanted, found = {*given}, {*outputs} - {*given}, []
        for node in reversed(self._nodes):
            if not wanted.isdisjoint(node.outputs):
                found.append(node)
                wanted |= node.reads - stops
        return found[::-1]


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
    names = [output.name for output in graph.interface.outputs]
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
    inputs = {value.name for value in graph.interface.inputs}
    # A stage that computes a hook that the graph is given, such as an edited one, would go on from its own.
    usable = [part for part in stages.parts if inputs.isdisjoint(part.outputs)]
    hooks = {stages.digests[hook]: hook for part in usable for hook in part.outputs}
    found = {name: hooks[digest] for name, digest in graph.digests.items() if digest in hooks and name not in inputs}
    if len({*found.values()}) < len(found):  # the graph computes a hook twice
        return None
    all_outputs = [value.name for value in graph.interface.outputs]
    outputs = [name for name in all_outputs if name not in found]
    before = graph.parameters_of(all_outputs, (), smallest)
    after = graph.parameters_of(outputs, found, smallest)
    if not before - after:
        return None
    given = {name: stages.types[hook] for name, hook in found.items()}
    return Remainder(graph, found, graph.cut(outputs, given) if outputs else None)


def _elements_elsewhere(message: memoryview) -> int:
    """Return the number of elements of an initializer that is stored in another file; 0 for others."""
    elsewhere = any(field == proto.EXTERNAL_DATA for field, _ in fields(message))
    return math.prod(initializer_shape(message)) if elsewhere else 0

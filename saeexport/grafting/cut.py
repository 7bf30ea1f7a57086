"""Cuts a host at its hooks into stages, between which a caller can do anything with the tensors at the hooks.

Stage 0 computes the tensor at the first hook, stage i goes on from what was made of the tensor at hook i - 1 to the one
at hook i, and the last stage computes the rest. Tensors go from stage to stage by their names:

    <hook>      the tensor at a hook: as an output the host's, as an input what was made of it
    live.<k>    another value of an earlier stage that a later one needs
    inputs      the host's inputs keep their names, and any stage may need them
    outputs     the host's outputs keep theirs; each comes from the stage that computes it
"""

from collections.abc import Sequence

import onnx_ir as ir

from runtime.hosts.names import stage

from ..graphs.passes.tools.subgraph import ancestors, reads
from .host import values_of
from .order import HookInHost


def cut_stages(graph: ir.Graph, cuts: Sequence[HookInHost]) -> dict[str, ir.Graph]:
    """Return the stages of a host by their names, `stage.0` to `stage.N`.

    Between two SAEs at one value nothing is computed: the stage is left out, and the tensor at the second hook is what
    was made of the one at the first.

    Args:
        graph: The host, which is not changed.
        cuts: The hooks, in the order in which the host computes their values.
    """
    cutter = _Cutter(graph, cuts)
    last = len(cuts)
    return {stage(i): cutter.stage(i) for i in range(last + 1) if i in (0, last) or cuts[i].value != cuts[i - 1].value}


class _Cutter:
    """Divides the nodes of a graph among stages, and copies each stage."""

    def __init__(self, graph: ir.Graph, cuts: Sequence[HookInHost]) -> None:
        self._graph, self._cuts = graph, cuts
        values = values_of(graph)
        self._at = [values[cut.value] for cut in cuts]
        self._hook_of = {value: cut.name for value, cut in zip(self._at, cuts, strict=True)}  # the last one at a value
        self._stage_of: dict[ir.Node, int] = {}
        for i, value in enumerate(self._at):
            for node in ancestors(value):
                self._stage_of.setdefault(node, i)
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        for node in graph:
            for value in reads(node):
                self._readers.setdefault(value, []).append(node)
        self._names = {value: str(value.name) for value in (*graph.inputs, *graph.outputs)} | self._hook_of
        for node in graph:
            for value in self._across(node):
                self._names.setdefault(value, f"live.{len(self._names)}")

    def stage(self, i: int) -> ir.Graph:
        """Return the graph of a stage."""
        nodes = [node for node in self._graph if self._stage(node) == i]
        own = {value for node in nodes for value in node.outputs}
        read = list(dict.fromkeys(value for node in nodes for value in reads(node)))
        constants = [value for value in read if value.is_initializer() and value not in self._graph.inputs]
        outputs = {
            self._names[value]: value
            for value in self._graph.outputs
            if value not in self._hook_of and (value in own or (i == len(self._cuts) and value in self._inputs))
        }
        outputs |= {self._names[value]: value for node in nodes for value in self._across(node)}
        if i < len(self._cuts):
            outputs = {self._cuts[i].name: self._at[i], **outputs}
        else:
            outputs |= {str(value.name): value for value in self._graph.outputs if value in self._hook_of}
        needed = [value for value in read if value not in own and value not in constants]
        needed += [value for value in outputs.values() if value not in own and value not in needed]
        needed = list(dict.fromkeys(needed))
        view = ir.GraphView(
            needed, list(outputs.values()), nodes=nodes, initializers=constants,
            opset_imports=self._graph.opset_imports, name=stage(i),
        )  # fmt: skip
        graph = view.clone()
        for value, original in zip(graph.inputs, needed, strict=True):
            value.name = self._names[original]
        for k, name in enumerate(outputs):
            value = graph.outputs[k]
            if value.is_graph_input():
                copy = ir.node("Identity", [value], name=f"pass.{name}")
                copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
                graph.append(copy)
                graph.outputs[k] = value = copy.outputs[0]
            value.name = name
        return graph

    @property
    def _inputs(self) -> set[ir.Value]:
        return set(self._graph.inputs)

    def _stage(self, node: ir.Node) -> int:
        return self._stage_of.get(node, len(self._cuts))

    def _across(self, node: ir.Node) -> list[ir.Value]:
        """Return the outputs of a node that later stages read, apart from the tensors at hooks."""
        return [
            value
            for value in node.outputs
            if value not in self._hook_of
            and any(self._stage(user) > self._stage(node) for user in self._readers.get(value, ()))
        ]

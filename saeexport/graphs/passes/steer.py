"""Adds interventions on features as inputs of a graph, for the price of a rank-m update instead of a second decoder.

With the clean activations `a`, the edited columns `e = a[:, ids] * scale + shift` and a decoder that begins with the
product `a @ W_dec + b`:

    acts_post = a with its columns ids replaced by e
    product   = (a @ W_dec + b) + (e - a[:, ids]) @ W_dec[ids]; the rest of the decoder makes recons from it
    error     = the error of the clean pass
    output    = recons, plus error with the error term

Other nodes that read the activations are computed a second time, from the edited activations.
"""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from runtime.arrays.dtypes import DTYPES
from runtime.artifact.manifest import GraphSpec
from runtime.artifact.names import (
    FEATURE_IDS,
    FEATURE_SCALE,
    FEATURE_SHIFT,
    HOOK_ACTS_POST,
    HOOK_ERROR,
    HOOK_OUTPUT,
    HOOK_RECONS,
    INTERVENTION,
)

from .tools.building import Nodes
from .tools.parameters import is_matrix, rows_of
from .tools.subgraph import ancestors

CLEAN = "clean."


def add_interventions(model: ir.Model, spec: GraphSpec) -> ir.Model:
    """Add the three inputs of an intervention, as in the spec of `steer`, to a graph from the input to the hooks."""
    graph = model.graph
    outputs = {value.name: value for value in graph.outputs}
    acts_post = outputs[HOOK_ACTS_POST]
    edited = _Editing(graph, acts_post, spec)
    after = _readers(acts_post)
    decoder = after & ancestors(outputs[HOOK_RECONS])
    clean = ancestors(outputs[HOOK_ERROR]) if HOOK_ERROR in outputs else set()
    to_output = after & (ancestors(outputs[HOOK_OUTPUT]) - clean)
    copies = edited.copy([node for node in list(graph) if node in decoder | to_output])

    for name in (HOOK_RECONS, HOOK_OUTPUT):
        copies[outputs[name]] = copies.get(outputs[name], outputs[name])
    copies[acts_post] = edited.scatter()
    for i, value in enumerate(graph.outputs):
        if value in copies and copies[value] is not value:
            copy = copies[value]
            copy.name, copy.shape, copy.type = value.name, value.shape, value.type
            value.name = f"{CLEAN}{value.name}"
            graph.outputs[i] = copy
    return RemoveUnusedNodesPass()(model).model


class _Editing:
    """Appends nodes to a graph that edit its activations."""

    def __init__(self, graph: ir.Graph, acts_post: ir.Value, spec: GraphSpec) -> None:
        self._graph = graph
        self._at = Nodes(graph)
        self._acts_post = acts_post
        self._scattered: ir.Value | None = None
        for tensor in spec.inputs:
            if tensor.name in INTERVENTION:
                dtype = ir.DataType(DTYPES[tensor.dtype].onnx)
                graph.inputs.append(ir.val(tensor.name, dtype=dtype, shape=list(tensor.shape)))
        inputs = {value.name: value for value in graph.inputs}
        self._ids, scale, shift = inputs[FEATURE_IDS], inputs[FEATURE_SCALE], inputs[FEATURE_SHIFT]
        self._selected = self._at("Gather", [acts_post, self._ids], axis=1)
        self._edited = self._at("Add", [self._at("Mul", [self._selected, scale]), shift])

    def scatter(self) -> ir.Value:
        """Return the activations with the edited columns, `[tokens, d_sae]`."""
        if self._scattered is None:
            columns = self._at("Expand", [self._ids, self._at("Shape", [self._edited])])
            self._scattered = self._at("ScatterElements", [self._acts_post, columns, self._edited], axis=1)
        return self._scattered

    def copy(self, nodes: list[ir.Node]) -> dict[ir.Value, ir.Value]:
        """Append copies of nodes that read the edited activations, and return the copy of each value."""
        copies: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            if _multiplies_by_weights(node, self._acts_post):
                copies[node.outputs[0]] = self._updated(node)
                continue
            if self._acts_post in node.inputs:
                copies[self._acts_post] = self.scatter()
            inputs = [value if value is None else copies.get(value, value) for value in node.inputs]
            copy = ir.Node(
                node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs),
                version=node.version,
            )  # fmt: skip
            self._graph.append(copy)
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.shape, new.type = old.shape, old.type
                copies[old] = new
        return copies

    def _updated(self, product: ir.Node) -> ir.Value:
        """Return `product`, a Gemm of the clean activations, plus the product of the change that the edits make."""
        weights = product.inputs[1]
        assert weights is not None
        transposed = _integer(product, "transB", 0)
        change = self._at("Sub", [self._edited, self._selected])
        rows = rows_of(self._at, weights, self._ids, axis=transposed)
        alpha = product.attributes["alpha"].as_float() if "alpha" in product.attributes else 1.0
        return self._at("Gemm", [change, rows, product.outputs[0]], transB=transposed, alpha=alpha)


def _multiplies_by_weights(node: ir.Node, acts_post: ir.Value) -> bool:
    """Tell whether a node is `acts_post @ W + b` with a parameter W."""
    if node.op_type != "Gemm" or node.inputs[0] is not acts_post or acts_post in node.inputs[1:]:
        return False
    return is_matrix(node.inputs[1]) and _integer(node, "transA", 0) == 0


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _readers(value: ir.Value) -> set[ir.Node]:
    """Return all nodes that depend on a value."""
    found: set[ir.Node] = set()
    todo = [value]
    while todo:
        for use in todo.pop().uses():
            if use.node not in found:
                found.add(use.node)
                todo.extend(use.node.outputs)
    return found

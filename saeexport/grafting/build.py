"""Builds the graphs of a grafted host: one for each mode, and the stages."""

from collections.abc import Collection, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from runtime.artifact.contracts import ACTS, ENCODE, MODEL, STEER, WIDE
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_INPUT
from runtime.hosts.names import FEATURES, SPLICE, TAP

from ..graphs.portable import IR_VERSION
from .cut import cut_stages
from .grafts import Graft
from .host import values_of
from .insert import Inserted
from .order import in_order
from .unfuse import unfuse

INSERTED = {TAP: (WIDE[MODEL], MODEL), SPLICE: (WIDE[STEER], STEER), FEATURES: (ACTS, WIDE[ENCODE], ENCODE)}
"""The graph of an SAE that each mode inserts: the first one that the SAE has. `acts` has standard operators only, and
takes a tenth less time than `encode` on a CPU. Of an SAE in half precision it is the graph that computes in float32 and
rounds every result, because a CPU, on which a graft is proved, would leave out the rounding between its operators."""

ALWAYS = (HOOK_INPUT, HOOK_ACTS_POST)
"""The hooks that are outputs of every tap and splice: the input, on which an SAE is judged, and the features."""

DESCRIPTIONS = {
    TAP: "The host, unchanged. The hooks of the SAEs are further outputs.",
    SPLICE: "The host goes on from the output of each SAE: its reconstruction, plus the error if <hook>.use_error_term "
    "is true. The inputs that begin with the name of a hook have defaults: the SAE attached (<hook>.attach), its own "
    "setting of the error term, and no edits (<hook>.feature_ids and so on, as in the SAE's steer.onnx).",
    FEATURES: "The feature activations alone. The host ends behind the last hook.",
}


def build_graph(model: ir.Model, grafts: Sequence[Graft], mode: str, hooks: Collection[str]) -> ir.Graph:
    """Return the graph of a mode.

    Args:
        model: The host, which is not changed.
        grafts: The SAEs.
        mode: "tap", "splice" or "features".
        hooks: Names of the hooks that become outputs of tap and splice, in addition to `ALWAYS`.

    Raises:
        GraftError: The shape or dtype of a value does not fit its SAE.
    """
    graph = model.graph.clone()
    values = values_of(graph)
    read: dict[str, ir.Value] = {}
    outputs = []
    for hook in in_order(values, grafts):
        graft, x = hook.graft, values[hook.value]
        if not hook.is_replaced:
            read[graft.hook] = x
            continue
        if mode == SPLICE:
            x = _unfuse(graph, x, read)
        name = next(name for name in INSERTED[mode] if name in graft.artifact.manifest.graphs)
        inserted = Inserted(graph, graft, read.get(graft.hook, x), name, None if graft.target is None else x)
        if mode == SPLICE:
            values[hook.value] = inserted.splice()
        wanted = (
            [HOOK_ACTS_POST]
            if mode == FEATURES
            else [name for name in inserted.hooks if name in hooks or name in ALWAYS]
        )
        outputs += [inserted.hooks[name] for name in wanted]
        if inserted.target is not None and mode != FEATURES:
            outputs.append(inserted.target)
    if mode == FEATURES:
        graph.outputs.clear()
    graph.outputs.extend(outputs)
    graph.sort()
    if mode == FEATURES:
        _drop_unread_inputs(graph)
    return graph


def build_probe(model: ir.Model, grafts: Sequence[Graft]) -> ir.Graph:
    """Return the graph of a host that ends at the hooks, with the values there as its outputs."""
    graph = model.graph.clone()
    values = values_of(graph)
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in dict.fromkeys(hook.value for hook in in_order(values, grafts)))
    _drop_unread_inputs(graph)
    return graph


def _drop_unread_inputs(graph: ir.Graph) -> None:
    """Remove the inputs that the outputs do not depend on, such as past keys of later layers."""
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=IR_VERSION))
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)


def build_stages(model: ir.Model, grafts: Sequence[Graft]) -> dict[str, ir.Graph]:
    """Return the graphs of the stages of a host by their names; see `cut_stages`."""
    graph = model.graph.clone()
    values = values_of(graph)
    hooks = in_order(values, grafts)
    for name in {hook.value for hook in hooks}:
        unfuse(graph, values[name])
    graph.sort()
    return cut_stages(graph, hooks)


def _unfuse(graph: ir.Graph, total: ir.Value, read: dict[str, ir.Value]) -> ir.Value:
    """Take a fused node apart as `unfuse` does; a transcoder that reads the sum reads it as it is then."""
    new = unfuse(graph, total)
    for hook, value in read.items():
        if value is total:
            read[hook] = new
    return new


def describe_stage(name: str, graph: ir.Graph) -> str:
    """Return the purpose of a stage, a text for people."""
    gives = ", ".join(str(value.name) for value in graph.outputs)
    return f"Stage {name.rpartition('.')[2]} of the host, cut at the hooks of the SAEs. It gives {gives}."

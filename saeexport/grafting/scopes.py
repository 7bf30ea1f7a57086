"""Proposes the value at a hook from the scopes that exporters write into a graph.

PyTorch's dynamo exporter records the path of the module of each node in its metadata, and its TorchScript exporter,
optimum and onnxruntime-genai write it into the names of nodes: `/encoder/layer.2/output/LayerNorm/Add_1`. The output of
a module is a value that is computed in its scope and read outside, its input one that is computed outside.
"""

import ast
import re
from collections.abc import Iterable

import onnx_ir as ir

from runtime.errors import GraftError

from .names import LAYOUTS, split_hook
from .probe import may_have_width

SCOPES = "pkg.torch.onnx.name_scopes"
BLOCK = re.compile(r"(^|\.)(layers?|h|blocks)\.(?P<index>\d+)(\.(?P<rest>.*))?$")
"""Path of a block, or of a module in it, in every model that `names` has a layout for."""


def propose(graph: ir.Graph, hook: str, width: int) -> set[str]:
    """Return the names of the values that may be the tensor at a hook, by the scopes alone; empty if there are none.

    Args:
        graph: Graph of the host.
        hook: TransformerLens name.
        width: Width of the activation.
    """
    try:
        index, name = split_hook(hook)
    except GraftError:
        return set()
    paths = {node: path for node in graph if (path := _path_in_block(node, index)) is not None}
    inside = set(paths.values())
    children = {child for path in inside for child in _prefixes(path)}
    places = {
        layout.places[name]
        for layout in LAYOUTS
        if name in layout.places and children.issuperset(child for child in layout.has if not _is_container(child))
    }
    found: set[str] = set()
    for child, tensor in places:
        nodes = {node for node, path in paths.items() if not child or path == child or path.startswith(f"{child}.")}
        values = _leaving(nodes) if tensor == "output" else _entering(nodes)
        found |= {str(value.name) for value in values if may_have_width(value, width)}
    return found


def _path_in_block(node: ir.Node, index: int) -> str | None:
    """Return the path of a node's module inside block `index`; None if the node is elsewhere."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is not None:
        try:
            paths = [str(scope) for scope in ast.literal_eval(scopes)[:-1]]  # the last one is the node itself
        except (ValueError, SyntaxError):
            return None
        path = paths[-1] if paths else ""
    else:
        path = ".".join(part for part in (node.name or "").split("/")[:-1] if part)
    match = BLOCK.search(path)
    if match is None or int(match["index"]) != index:
        return None
    return match["rest"] or ""


def _prefixes(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _is_container(child: str) -> bool:
    return "." not in child


def _leaving(nodes: set[ir.Node]) -> Iterable[ir.Value]:
    for node in nodes:
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in nodes for use in value.uses()):
                yield value


def _entering(nodes: set[ir.Node]) -> Iterable[ir.Value]:
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.producer() is not None and value.producer() not in nodes:
                yield value

"""What the values of a graph depend on, and the part between some of its values as a model, such as the encoder."""

from collections.abc import Sequence

import onnx_ir as ir


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Return a new model with the nodes that compute `outputs` from `inputs`. `model` is not changed."""
    graph = ir.convenience.extract(model.graph, inputs=list(inputs), outputs=list(outputs))
    # The library collects initializers in a set, whose order changes from process to process.
    in_order = sorted(graph.initializers.items())
    graph.initializers.clear()
    graph.initializers.update(in_order)
    return ir.Model(graph, ir_version=model.ir_version, producer_name=model.producer_name)


def depends_on(model: ir.Model, output: str, source: str, between: str) -> bool:
    """Tell whether the value `output` depends on `source` on a path that avoids the value `between`."""
    todo = [ir.convenience.create_value_mapping(model.graph)[output]]
    seen: set[ir.Value] = set()
    while todo:
        value = todo.pop()
        if value in seen or value.name == between:
            continue
        seen.add(value)
        if value.name == source:
            return True
        node = value.producer()
        todo.extend(input for input in (node.inputs if node else ()) if input is not None)
    return False


def ancestors(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that a value depends on."""
    found: set[ir.Node] = set()
    todo = [value.producer()]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo.extend(read.producer() for read in reads(node))
    return found


def reads(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node reads, those that its subgraphs read from outside included."""
    found = [value for value in node.inputs if value is not None]
    for graph in subgraphs_of(node):
        inside = {*graph.inputs, *graph.initializers.values()} | {v for n in graph for v in n.outputs}
        found += [value for inner in graph for value in reads(inner) if value not in inside]
        found += [value for value in graph.outputs if value is not None and value not in inside]
    return found


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs that a node has as attributes, such as the branches of an If."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return graphs

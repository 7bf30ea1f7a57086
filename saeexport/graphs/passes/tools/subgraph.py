"""Extracts the part of a graph between some of its values as a model, such as the encoder."""

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

"""The part of a graph between some of its values, as a model of its own: the encoder, the decoder."""

from collections.abc import Sequence

import onnx_ir as ir


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Return a new model with the nodes that compute `outputs` from `inputs`; `model` is not changed."""
    graph = ir.convenience.extract(model.graph, inputs=list(inputs), outputs=list(outputs))
    # The library collects them in a set, whose order changes from one process to the next.
    in_order = sorted(graph.initializers.items())
    graph.initializers.clear()
    graph.initializers.update(in_order)
    return ir.Model(graph, ir_version=model.ir_version, producer_name=model.producer_name)

"""Writes the weights of a host and its graphs into the folder; every graph refers to the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from runtime.artifact.manifest import GraphSpec
from runtime.errors import GraftError
from runtime.hosts.names import DATA

from ..graphs.passes.strip import strip_remarks
from ..graphs.passes.tools.subgraph import reads
from ..graphs.portable import IR_VERSION
from .describe import describe_graph, name_dimensions
from .unfuse import hide_residuals

ALIGNMENT = 4096
"""Offsets in the weights file are multiples of a page, so that every tensor can be mapped into memory."""

SMALLEST = 1024
"""Constants of more bytes than this are in the weights file, the others in each graph that needs them."""

"""Oldest version of the format of ONNX that the graphs have; it loads in every ONNX Runtime since 1.19."""


def move_weights(model: ir.Model, folder: Path) -> None:
    """Copy the weights of a host into one file, one tensor at a time, and let the model refer to it.

    The order is that of their first use, so that the same model gives the same bytes.

    Raises:
        GraftError: The host's external data is missing or too short.
    """
    position = 0
    with (folder / DATA).open("wb") as file:
        for value in _in_order_of_use(model):
            tensor: Any = value.const_value  # the protocol of tensors does not have `tofile`
            if tensor is None or (tensor.nbytes <= SMALLEST and not isinstance(tensor, ir.ExternalTensor)):
                continue
            if tensor.nbytes <= SMALLEST or tensor.dtype == ir.DataType.STRING:
                value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
                continue
            padding = -position % ALIGNMENT
            file.write(bytes(padding))
            position += padding
            try:
                tensor.tofile(file)
            except (OSError, ValueError) as error:
                raise GraftError(f"The weight {value.name} of the host cannot be read: {error}") from error
            written = file.tell() - position
            if written != tensor.nbytes:
                raise GraftError(
                    f"The weight {value.name} of the host has {written} bytes; its shape and dtype need "
                    f"{tensor.nbytes}. The file with its data is truncated: copy the host again."
                )
            value.const_value = ir.ExternalTensor(
                DATA, position, written, tensor.dtype, shape=ir.Shape(list(tensor.shape.numpy())), name=str(value.name),
                base_dir=folder,
            )  # fmt: skip
            position += written
            if isinstance(tensor, ir.ExternalTensor):
                tensor.release()


def _in_order_of_use(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the initializers of a model in the order of their first use, without those that nothing uses."""
    seen: set[ir.Value] = set()
    graphs = [model.graph, *model.graph.subgraphs()]
    inside = {value for graph in graphs[1:] for value in graph.initializers.values()}
    for node in model.graph:
        for value in reads(node):
            if value.is_initializer() and value not in seen:
                seen.add(value)
                yield value
    yield from (value for graph in graphs[1:] for value in graph.initializers.values() if value in inside - seen)


def write_graph(graph: ir.Graph, model: ir.Model, path: Path, description: str) -> GraphSpec:
    """Write a graph as a model, without what it does not need and without traces of the exporting machine.

    Args:
        graph: The graph, which is changed.
        model: Model that it belongs to.
        path: File to write.
        description: Purpose of the graph, a text for people.

    Returns:
        The inputs and outputs of the graph.
    """
    hide_residuals(graph)
    written = ir.Model(
        graph, ir_version=max(model.ir_version or IR_VERSION, IR_VERSION), functions=list(model.functions.values())
    )
    written = strip_remarks(RemoveUnusedNodesPass()(written).model)
    graph = written.graph
    graph.sort()
    in_order = sorted(graph.initializers.items())  # passes collect them in sets, whose order changes
    graph.initializers.clear()
    graph.initializers.update(in_order)
    name_dimensions(graph)
    ir.save(written, path)
    return describe_graph(graph, path.name, description)

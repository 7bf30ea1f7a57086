"""Describes a host, its SAEs and its graphs for the manifest."""

from collections.abc import Mapping

import onnx_ir as ir

from runtime.artifact.manifest import GraphSpec, TensorSpec
from runtime.hosts.manifest import CachePair, Evidence, GraftedSAE, GraftedTarget
from runtime.hosts.manifest import Host as HostRecord

from .grafts import Graft, trailing_dimensions
from .host import Host
from .inference import NAMES


def describe_tensor(value: ir.Value) -> TensorSpec:
    """Return the name, dtype and shape of an input or output; a dimension without a name gets one."""
    assert value.name is not None
    return TensorSpec(value.name, NAMES[ir.DataType(value.dtype or 0)], dimensions_of(value))


def dimensions_of(value: ir.Value) -> tuple[int | str, ...]:
    """Return the sizes of a value or their names; a dimension without either is named after the value."""
    return tuple(
        size if isinstance(size, int) else (size.value or f"{value.name}.{i}")
        for i, size in enumerate(value.shape or ())
    )


def name_dimensions(graph: ir.Graph) -> None:
    """Give every dimension of an input or output the name that the manifest has for it."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(dimensions_of(value))


def describe_graph(graph: ir.Graph, file: str, description: str) -> GraphSpec:
    """Return the spec of a graph."""
    inputs, outputs = (tuple(map(describe_tensor, values)) for values in (graph.inputs, graph.outputs))
    return GraphSpec(file, inputs, outputs, description)


def describe_host(host: Host, kind: str) -> HostRecord:
    """Return the record of a host; `kind` is "encoder" or "decoder"."""
    inputs = [value for value in host.graph.inputs if not value.is_initializer()]
    return HostRecord(
        host.name, host.sha256, host.exporter, host.opset, kind,
        tuple(map(describe_tensor, inputs)), tuple(map(describe_tensor, host.graph.outputs)),
        tuple(CachePair(past, present) for past, present in host.cache), dtype=host.exported_dtype,
    )  # fmt: skip


def describe_sae(
    values: Mapping[str, ir.Value], graft: Graft, evidence: Evidence, of_target: "Evidence | None" = None
) -> GraftedSAE:
    """Return the record of an SAE and its place.

    Args:
        values: Values of the host by name.
        graft: The SAE.
        evidence: How the value that it reads was identified.
        of_target: How its target was identified; None if it does not have one.
    """
    target = None
    if graft.target is not None and of_target is not None:
        spec = describe_tensor(values[graft.target.value])
        target = GraftedTarget(graft.target.hook, graft.target.value, spec.dtype, spec.shape, of_target)
    x = values[graft.value]
    tensor = describe_tensor(x)
    return GraftedSAE(
        graft.hook, graft.folder, graft.artifact.sha256, graft.value, tensor.dtype, tensor.shape,
        trailing_dimensions(x, graft) > 1, evidence, target=target,
    )  # fmt: skip

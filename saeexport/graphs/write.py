"""Cuts each graph of the artifact from the traced model, rewrites it and writes it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from torch import Tensor

from runtime.arrays.dtypes import BFLOAT16
from runtime.artifact.contracts import (
    ACTIVATE,
    ACTS,
    DECODE,
    ENCODE,
    FEATURES,
    MODEL,
    PORTABLE,
    SPARSE,
    STEER,
    WIDE,
    graph_specs,
)
from runtime.artifact.files import hash_file
from runtime.artifact.manifest import CUSTOM, GraphSpec, SAEConfig
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_RECONS, INPUT
from runtime.errors import ExportError

from .passes.bias import fold_bias_into_matrix
from .passes.describe import describe
from .passes.external import point_to_weights
from .passes.gemm import products_to_gemm
from .passes.int8 import DOMAIN as INT8_DOMAIN
from .passes.int8 import weights_to_int8
from .passes.sparse import decode_sparsely
from .passes.steer import CLEAN, add_interventions
from .passes.strip import strip_remarks
from .passes.tools.subgraph import depends_on, extract
from .passes.top import keep_strongest, keep_strongest_on_a_cpu
from .passes.unfuse import gemm_to_matmul_and_add
from .passes.widen import ON_CUDA, widen
from .portable import violations
from .requirements import requirements_of
from .trace import trace

PART = {STEER: MODEL, FEATURES: ENCODE}
"""Graphs, and CPU variants of graphs, that are cut at the inputs and outputs of another graph."""

Rewrite: TypeAlias = Callable[[ir.Model, GraphSpec], ir.Model]

REWRITES: dict[str, tuple[Rewrite, ...]] = {
    STEER: (add_interventions,),
    FEATURES: (keep_strongest,),
    ACTS: (lambda model, _: fold_bias_into_matrix(model),),
    SPARSE[MODEL]: (lambda model, _: fold_bias_into_matrix(decode_sparsely(model, HOOK_ACTS_POST)),),
    SPARSE[DECODE]: (lambda model, _: decode_sparsely(model, HOOK_ACTS_POST),),
    SPARSE[STEER]: (
        add_interventions,
        lambda model, _: fold_bias_into_matrix(decode_sparsely(model, CLEAN + HOOK_ACTS_POST)),
    ),
    SPARSE[FEATURES]: (
        lambda model, _: fold_bias_into_matrix(model),
        keep_strongest_on_a_cpu,
    ),
}
"""The passes that run on a graph after it is cut."""


def select_rewrites(graph: str) -> tuple[Rewrite, ...]:
    """Return the passes that run on a graph after it is cut."""
    if graph in WIDE.values():
        return (*REWRITES.get(graph.removesuffix(".wide"), ()), lambda model, _: widen(model))
    return REWRITES.get(graph, ())


def trace_model(sae: Any, config: SAEConfig) -> ir.Model:
    """Return the graph of an SAE from the input to the hooks, with each product as one Gemm.

    Raises:
        ExportError: PyTorch cannot trace the SAE, or `recons` depends on `acts_pre` past `acts_post`.
    """
    model = products_to_gemm(strip_remarks(trace(sae, config)))
    if depends_on(model, HOOK_RECONS, HOOK_ACTS_PRE, HOOK_ACTS_POST):
        raise ExportError(
            f"hook_sae_recons of this {type(sae).__name__} depends on hook_sae_acts_pre other than through "
            "hook_sae_acts_post, so an artifact could not reproduce hook functions at hook_sae_acts_pre."
        )
    return widen(model, ON_CUDA) if config.dtype == BFLOAT16 else model


def quantize_weights(model: ir.Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantize the matrices of a traced model to int8 in place, and return its new parameters by name."""
    rounded = {name: torch.from_numpy(array) for name, array in weights_to_int8(model, HOOK_ACTS_POST).items()}
    RemoveUnusedNodesPass()(model)
    return {name: tensor for name, tensor in state.items() if name in model.graph.initializers} | rounded


def write_graphs(model: ir.Model, config: SAEConfig, weights: Path) -> dict[str, GraphSpec]:
    """Write every graph of the artifact beside its weights, check it, and return the specs by name.

    Graphs of custom classes and graphs with int8 weights may use operators that are not portable; they run in fewer
    engines, and their specs say so.

    Args:
        model: Traced model from the input to the hooks, with parameters named as in `weights`.
        config: Config of the SAE.
        weights: File with the parameters.

    Raises:
        ExportError: A graph is not valid, does not match its contract, is not portable, or has another opset.
    """
    model = point_to_weights(model, weights)
    any_operators = config.architecture.startswith(CUSTOM) or INT8_DOMAIN in model.opset_imports
    sha256 = hash_file(weights).sha256
    specs = graph_specs(config, [name for name in (ACTIVATE, DECODE) if _needs_input(model, name)])
    for name, spec in specs.items():
        part = specs[PART.get(name.partition(".")[0], name)]
        graph = extract(model, [tensor.name for tensor in part.inputs], [tensor.name for tensor in part.outputs])
        for rewrite in select_rewrites(name):
            graph = rewrite(graph, spec)
        if name in PORTABLE:
            graph = gemm_to_matmul_and_add(graph)
        graph = RemoveUnusedOpsetsPass()(RemoveUnusedNodesPass()(graph).model).model
        ir.save(describe(graph, name, config, sha256), weights.parent / spec.file)
        check_graph(weights.parent / spec.file, spec)
        if name in PORTABLE and not any_operators:
            check_portable(weights.parent / spec.file)
    return {
        name: dataclasses.replace(spec, requires=requirements_of(weights.parent / spec.file))
        for name, spec in specs.items()
    }


def _needs_input(model: ir.Model, graph: str) -> bool:
    """Tell whether `activate` or `decode` of a traced SAE also reads the input, as a gate or a skip connection does."""
    (source,), (output,) = PORTABLE[graph].inputs, PORTABLE[graph].outputs
    return depends_on(model, output, INPUT, source)


def check_portable(path: Path) -> None:
    """Refuse a graph that is not portable, see `portable.py`.

    Raises:
        ExportError: The graph is not portable; the message says why.
    """
    if found := violations(path):
        raise ExportError(f"{path.name} is not portable: {'; '.join(found)}.")


def check_graph(path: Path, spec: GraphSpec) -> None:
    """Refuse a graph that is not valid ONNX, or whose inputs or outputs differ from its contract.

    Raises:
        ExportError: The graph is refused; the message says why.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error
    graph = onnx.load_model(path, load_external_data=False).graph
    for role, found, expected in (("inputs", graph.input, spec.inputs), ("outputs", graph.output, spec.outputs)):
        names, wanted = [value.name for value in found], [tensor.name for tensor in expected]
        if names != wanted:
            raise ExportError(f"{path.name} has the {role} {', '.join(names)}; they must be {', '.join(wanted)}.")

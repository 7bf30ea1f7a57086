"""Writes the folder that the contenders read; `contenders/cases.py` describes it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from benchmarks.cpu.contenders.cases import ARTIFACT, WATCHED, input_file, load_encoder, plain_file, product_file
from benchmarks.cpu.contenders.names import OPENVINO, PLAIN_ONNX, PRODUCT, PRODUCTS
from benchmarks.cpu.contenders.torch_contenders import strongest_of
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, FEW, WATCH
from benchmarks.shared.saes import Workload, measure_sparsity
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES, INDICES, INPUT, TOKENS, VALUES
from saeexport import HookedSAE, export
from saeexport.graphs.trace import quiet_exporter

PROOF_TOKENS = 16  # the exporter proves the artifact on these
LOUDER = 1000
TOKENS_COUNTED = 256  # among which the most frequent features are found


def write_case(
    folder: Path, workload: Workload, rows: Sequence[int], names: Mapping[str, Collection[str]]
) -> dict[int, dict[str, float]]:
    """Write what contenders read, and return the sparsity of the inputs by number of rows.

    Args:
        folder: Empty folder.
        workload: The SAE and its inputs.
        rows: Numbers of rows.
        names: The contenders by use.
    """
    inputs = workload.inputs(PROOF_TOKENS)
    louder = np.concatenate([inputs, LOUDER * inputs])  # on which features are on in every workload, as a proof needs
    export(workload.sae, folder / ARTIFACT, activations=louder)
    ids = most_frequent(workload)
    np.save(folder / WATCHED, ids)
    for use, contenders in names.items():
        if {PLAIN_ONNX, OPENVINO} & {*contenders}:
            export_plain(workload.sae, use, ids, plain_file(folder, use))
        if {*PRODUCTS} & {*contenders}:
            write_product(load_encoder(folder, use).W_enc, product_file(folder, use))
    sparsity = {}
    for count in rows:
        x = workload.inputs(count)
        np.save(input_file(folder, count), x)
        sparsity[count] = measure_sparsity(workload.sae, x)
    return sparsity


def most_frequent(workload: Workload) -> Array:
    """Return the ids of the `FEW` features that are on most often, in ascending order.

    In a small batch other features may all be off, and zeros prove little.
    """
    with torch.no_grad():
        on = workload.sae.encode(torch.from_numpy(workload.inputs(TOKENS_COUNTED))) > 0
    return np.sort(on.sum(0).topk(FEW).indices.numpy())


class _ForUse(nn.Module):
    """A HookedSAE that returns the tensors of a use."""

    def __init__(self, sae: HookedSAE, use: str, ids: Array) -> None:
        super().__init__()
        self.sae, self.use = sae, use
        if use == WATCH:
            self.W_enc = nn.Parameter(sae.W_enc[:, ids].contiguous())
            self.b_enc = nn.Parameter(sae.b_enc[ids])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.use == FEATURES:
            return strongest_of(self.sae.encode(x))
        if self.use == WATCH:
            return (torch.relu((x - self.sae.b_dec) @ self.W_enc + self.b_enc),)
        seen: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any) -> None:
            seen[hook.name] = tensor

        self.sae.run_with_hooks(x, fwd_hooks=[(name, keep) for name in HOOK_NAMES])
        return tuple(seen[name] for name in HOOK_NAMES)


OUTPUTS = {ALL_HOOKS: HOOK_NAMES, FEATURES: (INDICES, VALUES), WATCH: (HOOK_ACTS_POST,)}


def export_plain(sae: HookedSAE, use: str, ids: Array, path: Path) -> None:
    """Export the module with the tensors of a use as outputs and the default options of `torch.onnx.export`."""
    example = torch.zeros(3, sae.cfg.d_in)
    with quiet_exporter():
        torch.onnx.export(
            _ForUse(sae, use, ids).eval(),
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=list(OUTPUTS[use]),
            dynamic_shapes=({0: torch.export.Dim(TOKENS)},),
            dynamo=True,
            verbose=False,
        )


def write_product(W_enc: Array, path: Path) -> None:
    """Write a graph that only multiplies its input by `W_enc`."""
    weights = numpy_helper.from_array(W_enc, "W_enc")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, width])
            for name, width in zip((INPUT, PRODUCT), W_enc.shape, strict=True)]  # fmt: skip
    node = helper.make_node("MatMul", [INPUT, "W_enc"], [PRODUCT])
    graph = helper.make_graph([node], PRODUCT, ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")

"""Writes the folder that the contenders read; `contenders/cases.py` describes it."""

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from benchmarks.cpu.contenders.cases import ARTIFACT, PLAIN_FILE, PRODUCT_FILE, input_file
from benchmarks.cpu.contenders.names import FLOOR, PLAIN_ONNX
from benchmarks.shared.saes import Workload, measure_sparsity
from runtime.artifact.names import HOOK_NAMES, INPUT, TOKENS
from saeexport import HookedSAE, export

PROOF_TOKENS = 16  # the exporter proves the artifact on these
LOUDER = 1000


def write_case(
    folder: Path, workload: Workload, rows: Sequence[int], names: Collection[str]
) -> dict[int, dict[str, float]]:
    """Write what the contenders `names` read, and return the sparsity of the inputs by number of rows."""
    inputs = workload.inputs(PROOF_TOKENS)
    louder = np.concatenate([inputs, LOUDER * inputs])  # on which features are on in every workload, as a proof needs
    export(workload.sae, folder / ARTIFACT, activations=louder)
    if PLAIN_ONNX in names:
        export_plain(workload.sae, folder / PLAIN_FILE)
    if FLOOR in names:
        write_product(workload.sae, folder / PRODUCT_FILE)
    sparsity = {}
    for count in rows:
        x = workload.inputs(count)
        np.save(input_file(folder, count), x)
        sparsity[count] = measure_sparsity(workload.sae, x)
    return sparsity


class _WithHooks(nn.Module):
    """A HookedSAE that returns its six hook tensors."""

    def __init__(self, sae: HookedSAE) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        seen: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any) -> None:
            seen[hook.name] = tensor

        self.sae.run_with_hooks(x, fwd_hooks=[(name, keep) for name in HOOK_NAMES])
        return tuple(seen[name] for name in HOOK_NAMES)


def export_plain(sae: HookedSAE, path: Path) -> None:
    """Export the module with its hooks as outputs and the default options of `torch.onnx.export`."""
    example = torch.zeros(3, sae.cfg.d_in)
    with _without_warnings():
        torch.onnx.export(
            _WithHooks(sae).eval(),
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=list(HOOK_NAMES),
            dynamic_shapes=({0: torch.export.Dim(TOKENS)},),
            dynamo=True,
            verbose=False,
        )


def write_product(sae: HookedSAE, path: Path) -> None:
    """Write a graph that only multiplies its input by `W_enc`."""
    weights = numpy_helper.from_array(sae.W_enc.detach().numpy(), "W_enc")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, width])
            for name, width in ((INPUT, sae.cfg.d_in), ("product", sae.cfg.d_sae))]  # fmt: skip
    node = helper.make_node("MatMul", [INPUT, "W_enc"], ["product"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence torch.onnx, which warns about operators that are not installed and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

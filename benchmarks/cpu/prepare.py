"""Write the folder of a case, see `cases.py`."""

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

from benchmarks.cpu.cases import ARTIFACT, PLAIN_FILE, PRODUCT_FILE, input_file
from benchmarks.cpu.contenders import FLOOR, PLAIN_ONNX
from benchmarks.shared.saes import Subject, firing
from runtime.artifact.names import HOOK_NAMES, INPUT, TOKENS
from saeexport import HookedSAE, export

PROOF_TOKENS = 16  # on which the exporter proves the artifact


def write_case(
    folder: Path, subject: Subject, rows: Sequence[int], names: Collection[str]
) -> dict[int, dict[str, float]]:
    """Write what the contenders `names` read, and return what is on for the inputs, by number of rows."""
    export(subject.sae, folder / ARTIFACT, activations=subject.inputs(PROOF_TOKENS))
    if PLAIN_ONNX in names:
        export_plainly(subject.sae, folder / PLAIN_FILE)
    if FLOOR in names:
        write_product(subject.sae, folder / PRODUCT_FILE)
    facts = {}
    for count in rows:
        x = subject.inputs(count)
        np.save(input_file(folder, count), x)
        facts[count] = firing(subject.sae, x)
    return facts


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


def export_plainly(sae: HookedSAE, path: Path) -> None:
    """Export the module with its hooks as outputs and the exporter's default options: nothing of this project's."""
    example = torch.zeros(3, sae.cfg.d_in)
    with _quiet():
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
    """Write a graph that multiplies its input by `W_enc`, and nothing else."""
    weights = numpy_helper.from_array(sae.W_enc.detach().numpy(), "W_enc")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, width])
            for name, width in ((INPUT, sae.cfg.d_in), ("product", sae.cfg.d_sae))]  # fmt: skip
    node = helper.make_node("MatMul", [INPUT, "W_enc"], ["product"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch.onnx says of operators that are not installed and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

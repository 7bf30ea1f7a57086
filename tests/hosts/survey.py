"""What is found in the hosts of every exporter: the cases, and what a case gives."""

import importlib.metadata
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.artifact.folder import read_artifact
from runtime.errors import SAEError
from saeexport import export, graft
from saeexport.grafting.given import prepare
from saeexport.grafting.host import load_host
from saeexport.grafting.locate import find
from tests.hosts.exporters import (
    Exporter,
    dtype_of,
    dynamo,
    fused,
    genai,
    in_half,
    opset_of,
    optimum,
    own,
    quantized,
    torchscript,
)  # fmt: skip
from tests.hosts.table import RESULTS
from tests.support.explaining import explaining_sae
from tests.support.language_models import DECODERS, ENCODERS

SHORT = ("resid_pre", "resid_mid", "resid_post", "normalized_resid_post", "attn_out", "mlp_out", "attn.z", "mlp.post")
HOOKS = {short: f"blocks.1.{'.'.join([*short.split('.')[:-1], 'hook_' + short.split('.')[-1]])}" for short in SHORT}
"""The hooks that are looked for in every host, by the short names of the table."""

PACKAGES = (
    "torch", "transformers", "optimum", "optimum-onnx", "onnxruntime-genai", "onnxruntime", "onnx", "onnxscript",
)  # fmt: skip
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
ALL = (*ENCODERS, *DECODERS)

CASES: tuple[tuple[Exporter, tuple[str, ...]], ...] = (
    (Exporter("saeexport graft hf:", own(["blocks.1.hook_resid_post"])), ALL),
    (Exporter("torch.onnx.export(dynamo=True)", dynamo()), ("bert", "distilbert", "gpt2", *LLAMAS, "gpt_neox")),
    (Exporter("torch.onnx.export(dynamo=True), opset 23", dynamo(opset=23)), ("bert", "llama")),
    (Exporter("torch.onnx.export(dynamo=True), float16", dynamo(torch.float16)), ("bert", "gpt2", "llama")),
    (Exporter("torch.onnx.export(dynamo=True), bfloat16", dynamo(torch.bfloat16)), ("bert", "gpt2", "llama")),
    (Exporter("torch.onnx.export(dynamo=False), opset 14", torchscript(14)), ("bert", "distilbert", "gpt2")),
    (Exporter("torch.onnx.export(dynamo=False), opset 17", torchscript(17)), ("bert", "gpt2", "llama")),
    (Exporter("optimum-onnx", optimum()), ALL[:-1]),
    (Exporter("optimum-onnx, opset 14", optimum("--opset", "14")), ("bert", "gpt2")),
    (Exporter("optimum-onnx, converted to float16", in_half(optimum())), ("bert", "gpt2")),
    (Exporter("optimum-onnx, fused by ONNX Runtime", fused(optimum(), "bert")), ("bert", "roberta")),
    (Exporter("optimum-onnx, fused by ONNX Runtime", fused(optimum(), "gpt2")), ("gpt2",)),
    (Exporter("optimum-onnx, quantized to int8", quantized(optimum())), ("bert",)),
    (Exporter("onnxruntime-genai", genai("fp32")), (*LLAMAS, "gpt2")),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was found in a host.

    Attributes:
        exporter: Name of the exporter.
        model: Name of the model.
        opset: Version of ONNX's operators; 0 if the model was not exported.
        dtype: Dtype of the weights.
        cache: Whether the host takes past key values.
        found: Short names of the hooks whose values were found.
        refused: Short names of the hooks that were refused.
        error: Largest error of a value that was found.
        other: Smallest error of a value that was second best.
        graft: "proved", or why no SAE was grafted.
    """

    exporter: str
    model: str
    opset: int = 0
    dtype: str = ""
    cache: bool = False
    found: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    error: float = 0.0
    other: float = 0.0
    graft: str = ""

    def stable(self) -> dict[str, Any]:
        """Return what does not depend on the machine."""
        return {key: value for key, value in asdict(self).items() if key not in ("error", "other")}


@dataclass
class SAEs:
    """Artifacts of SAEs that explain any activation of their width, made when they are needed."""

    folder: Path
    made: dict[str, Path] = field(default_factory=dict)

    def of(self, width: int, explained: float = 1.0, center: Any = None, name: str = "") -> Path:
        """Return the artifact for a width."""
        key = f"{width}-{explained}-{name}"
        if key not in self.made:
            self.made[key] = export(explaining_sae(width, "", explained, center), self.folder / key).path
        return self.made[key]


def survey(exporter: Exporter, model: str, folder: Path, out: Path, saes: SAEs) -> Row:
    """Export a model, look for every hook in it, and graft an SAE at the output of block 1.

    Args:
        exporter: The exporter.
        model: Name of the model.
        folder: Its folder, as transformers saves it.
        out: Folder to write to.
        saes: Artifacts to graft.
    """
    hooks = {short: hook for short, hook in HOOKS.items() if model in ENCODERS or short != "normalized_resid_post"}
    if model == "gpt_neox":
        del hooks["resid_mid"]
    try:
        path = exporter.export(folder, out)
    except Exception as error:  # of whatever kind the exporter raises
        return Row(exporter.name, model, graft=f"not exported: {_reason(error)}")
    host = load_host(path)
    given = prepare(host, list(hooks.values()), folder, None)
    found, refused, errors, others = [], [], [0.0], []
    for short, hook in hooks.items():
        activation = given.reference.activations[hook]
        width = activation[0, 0].size
        try:
            located = find(host, hook, read_artifact(saes.of(width)), given.reference)
        except SAEError:
            refused.append(short)
            continue
        found.append(short)
        errors.append(located.evidence.error or 0.0)
        others.append(located.evidence.runner_up_error or 0.0)
    block_output = "normalized_resid_post" if model in ENCODERS else "resid_post"
    center = given.reference.activations[hooks[block_output]][0].mean(0)
    try:
        sae = saes.of(len(center), 0.9, center, model)
        graft(path, {hooks[block_output]: sae}, out / "grafted", hf=folder)
        outcome = "proved"
    except SAEError as error:
        outcome = f"refused: {_reason(error)}"
    return Row(
        exporter.name, model, opset_of(path), dtype_of(path), bool(host.cache), tuple(found), tuple(refused),
        max(errors), min(others, default=0.0), outcome,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """Return the first sentence of an error, without paths and hooks."""
    text = str(error).splitlines()[0]
    for hook in HOOKS.values():
        text = text.removeprefix(f"{hook}: ")
    return re.split(r"\. |: \[", re.sub(r" /\S+", "", text))[0]


def versions() -> dict[str, str]:
    """Return the versions of the packages that made the hosts."""
    packages = (
        "torch",
        "transformers",
        "optimum",
        "optimum-onnx",
        "onnxruntime-genai",
        "onnxruntime",
        "onnx",
        "onnxscript",
    )
    return {package: importlib.metadata.version(package) for package in packages}


def read() -> dict[tuple[str, str], Row]:
    """Return the rows of the file of results by exporter and model."""
    content = json.loads(RESULTS.read_text("utf-8"))
    rows = [Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in content["rows"]]
    return {(row.exporter, row.model): row for row in rows}

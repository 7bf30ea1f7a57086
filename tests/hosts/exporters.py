"""Exports small models of transformers to ONNX by every program that hosts come from."""

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from torch import nn

from runtime.errors import GraftError
from saeexport.grafting.huggingface import export_host
from saeexport.grafting.reference import load_model


@dataclass(frozen=True)
class Exporter:
    """A program that exports a folder of transformers to an ONNX file.

    Attributes:
        name: Its name in the table.
        export: The function that does it: (folder, folder to write to) -> ONNX file.
    """

    name: str
    export: Callable[[Path, Path], Path]


class Plain(nn.Module):
    """A model that takes token ids and a mask, and gives its hidden states or logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options())
        return outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]

    def options(self):
        return {"return_dict": True} | (
            {} if type(self.model).__name__.startswith("DistilBert") else {"use_cache": False}
        )


INPUTS, IDS = ["input_ids", "attention_mask"], torch.arange(3, 13).reshape(2, 5)


def dynamo(dtype: torch.dtype = torch.float32, opset: int | None = None) -> Callable[[Path, Path], Path]:
    """Return `torch.onnx.export(dynamo=True)` of a model in a dtype."""

    def export(folder: Path, out: Path) -> Path:
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Plain(load_in(folder, dtype)), (IDS, torch.ones_like(IDS)), out / "model.onnx",
                dynamo=True, dynamic_shapes=(sizes, sizes), input_names=INPUTS, output_names=["output"],
                opset_version=opset, verbose=False,
            )  # fmt: skip
        return out / "model.onnx"

    return export


def load_in(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return a model in a dtype as transformers loads it, with the frequencies of rotary embeddings in float32."""
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def torchscript(opset: int) -> Callable[[Path, Path], Path]:
    """Return `torch.onnx.export(dynamo=False)` with an opset."""

    def export(folder: Path, out: Path) -> Path:
        axes = {name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "output")}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Plain(load_model(folder)).eval(), (IDS, torch.ones_like(IDS)), str(out / "model.onnx"), dynamo=False,
                input_names=INPUTS, output_names=["output"], dynamic_axes=axes, opset_version=opset,
            )  # fmt: skip
        return out / "model.onnx"

    return export


def optimum(*options: str) -> Callable[[Path, Path], Path]:
    """Return `optimum-cli export onnx` with options; a decoder gets past key values."""

    def export(folder: Path, out: Path) -> Path:
        decoder = any(name in (folder / "config.json").read_text() for name in ("CausalLM", "LMHeadModel"))
        task = "text-generation-with-past" if decoder else "feature-extraction"
        _run("optimum.exporters.onnx", "--model", str(folder), "--task", task, "--library-name", "transformers",
             *options, str(out))  # fmt: skip
        return out / "model.onnx"

    return export


def genai(precision: str) -> Callable[[Path, Path], Path]:
    """Return the model builder of onnxruntime-genai."""

    def export(folder: Path, out: Path) -> Path:
        _run("onnxruntime_genai.models.builder", "-i", str(folder), "-o", str(out), "-p", precision, "-e", "cpu",
             "-c", str(out / "cache"))  # fmt: skip
        return out / "model.onnx"

    return export


def in_half(export: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """Return an exporter whose file ONNX Runtime's converter turns into float16."""

    def convert(folder: Path, out: Path) -> Path:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        path = export(folder, out)
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=False), path)
        return path

    return convert


def fused(export: Callable[[Path, Path], Path], kind: str) -> Callable[[Path, Path], Path]:
    """Return an exporter whose file ONNX Runtime's transformers optimiser fuses."""

    def convert(folder: Path, out: Path) -> Path:
        from onnxruntime.transformers.optimizer import optimize_model

        path = export(folder, out)
        optimize_model(str(path), kind, num_heads=4, hidden_size=64).save_model_to_file(str(out / "fused.onnx"))
        return out / "fused.onnx"

    return convert


def quantized(export: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """Return an exporter whose file ONNX Runtime quantizes to int8."""

    def convert(folder: Path, out: Path) -> Path:
        from onnxruntime.quantization import quantize_dynamic

        path = export(folder, out)
        quantize_dynamic(path, out / "int8.onnx")
        return out / "int8.onnx"

    return convert


def own(hooks: Sequence[str]) -> Callable[[Path, Path], Path]:
    """Return `saeexport graft hf:FOLDER`, with these hooks as values."""
    return lambda folder, out: export_host(folder, hooks, out)


def _run(module: str, *arguments: str) -> None:
    """Run a module in a process of its own, because exporters change global state.

    Raises:
        GraftError: It fails; the message is the last line that it wrote.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, timeout=600
    )
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise GraftError(f"{module} failed: {lines[-1] if lines else done.returncode}")


def dtype_of(path: Path) -> str:
    """Return the dtype in which a model has most of its weights."""
    model = onnx.load(path, load_external_data=False)
    sizes: dict[int, int] = {}
    for weight in model.graph.initializer:
        sizes[weight.data_type] = sizes.get(weight.data_type, 0) + int(np.prod(weight.dims or (1,)))
    return onnx.TensorProto.DataType.Name(max(sizes, key=lambda kind: sizes[kind])).lower()


def opset_of(path: Path) -> int:
    """Return the version of ONNX's operators that a model uses."""
    model = onnx.load(path, load_external_data=False)
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


@contextlib.contextmanager
def one_thread():
    """Run PyTorch in one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""The SAEs that are measured: random weights with a known sparsity, and inputs for them, all drawn from a seed.

    FOLDER/768x24576/float32/    an artifact, with the candidates beside its graphs (`measure/candidates.py`)
    FOLDER/768x24576/bfloat16/   the same SAE in another dtype

Nothing here needs transformer_lens, so that a machine without it can measure artifacts that another machine prepared.
The weights may be left out for the transfer: their file is cut to its header, and they are drawn again.
"""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from runtime.arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from runtime.arrays.tensor import Array
from runtime.artifact.contracts import MODEL
from runtime.devices.options import TF32

WEIGHTS = "weights.safetensors"
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
L0 = 50
BIAS_SPREAD = 0.1
"""Standard deviation of the biases. They differ, so that a bias in the wrong place is noticed."""

PRECISIONS = (FLOAT32, TF32, FLOAT16, BFLOAT16)

BIAS_ROWS = 8
"""Columns that `rides` appends to x: a one, and zeros so that the inner dimension stays a multiple of 8."""
AS_IS, GEMM, RIDES = "as_is", "gemm", "rides"
CANDIDATES = (AS_IS, GEMM, RIDES)
"""Ways to write `model.onnx`, which `measure/candidates.py` describes."""


def weights_dtype(precision: str) -> str:
    """Return the dtype of the weights of a precision: TF32 is a way to compute products of float32 values."""
    return FLOAT32 if precision == TF32 else precision


def artifact_folder(folder: Path, shape: tuple[int, int], dtype: str) -> Path:
    """Return the folder of the artifact of a size and dtype."""
    return folder / f"{shape[0]}x{shape[1]}" / dtype


def candidate_file(artifact: Path, name: str) -> Path:
    """Return the path of the graph of a candidate."""
    return artifact / (f"{MODEL}.onnx" if name == AS_IS else f"candidate.{name}.onnx")


def draw_weights(d_in: int, d_sae: int) -> dict[str, Array]:
    """Return the float32 weights of an SAE with about `L0` features on, but at most half of them, for `draw_inputs`.

    An input minus b_dec is standard normal and the directions of the features are unit vectors. Each feature therefore
    sees a standard normal variable, and its bias says how often it is on.
    """
    draws = np.random.default_rng(0)
    W_dec = draws.standard_normal((d_sae, d_in), dtype=np.float32)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    threshold = NormalDist(0, (1 + BIAS_SPREAD**2) ** 0.5).inv_cdf(1 - min(L0 / d_sae, 0.5))
    b_enc = BIAS_SPREAD * draws.standard_normal(d_sae, dtype=np.float32) - np.float32(threshold)
    b_dec = np.float32(0.1) * draws.standard_normal(d_in, dtype=np.float32)
    return {"W_enc": np.ascontiguousarray(W_dec.T), "b_enc": b_enc.astype(np.float32), "W_dec": W_dec, "b_dec": b_dec}


def draw_inputs(weights: dict[str, Tensor], rows: int, sets: int) -> list[Tensor]:
    """Return several sets of inputs, `(rows, d_in)`, on the device and in the dtype of the weights."""
    b_dec = weights["b_dec"]
    generator = torch.Generator(b_dec.device).manual_seed(1)
    shape = (rows, len(b_dec))
    return [
        (torch.randn(shape, generator=generator, device=b_dec.device) + b_dec.float()).to(b_dec.dtype)
        for _ in range(sets)
    ]


def load_weights(artifact: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the parameters of an artifact, in the order in which the equations take them."""
    stored = load_file(artifact / WEIGHTS, device=str(device))
    return {name: stored[name] for name in PARAMETERS}


def leave_weights_out(artifact: Path) -> None:
    """Cut the weights file to its header and remove the golden batch, so that the artifact takes kilobytes."""
    file = artifact / WEIGHTS
    _, start = _header(file)
    with file.open("r+b") as opened:
        opened.truncate(start)
    (artifact / "golden.safetensors").unlink()


def fill_in_weights(artifact: Path) -> None:
    """Draw the weights of an artifact again if they were left out.

    The last bits may differ on another processor. Only the file's hash depends on them, and it is not checked.
    """
    file = artifact / WEIGHTS
    header, start = _header(file)
    if file.stat().st_size > start:
        return
    d_in, d_sae = header["W_enc"]["shape"]
    with file.open("r+b") as opened:
        for name, values in draw_weights(d_in, d_sae).items():
            opened.seek(start + header[name]["data_offsets"][0])
            opened.write(values.astype(artifact.name).tobytes())


def _header(file: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    """Return the header of a safetensors file, and the offset of the data.

    Source: https://github.com/huggingface/safetensors#format
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(length)), 8 + length

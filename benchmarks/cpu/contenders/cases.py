"""The folder that every contender of one SAE reads, so that the weights and the inputs are identical for all.

    sae/                the artifact, whose weights PyTorch loads too
    plain-USE.onnx      the module as `torch.onnx.export` writes it, for a use
    product-USE.onnx    the encoder's product alone, with the columns that a use needs
    watched.npy         the ids of the features that are watched
    x-ROWS.npy          the inputs, by number of rows

`benchmarks/cpu/prepare.py` writes it. This module does not import PyTorch, because some processes run without it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from benchmarks.cpu.contenders.uses import WATCH
from runtime.arrays.tensor import Array

ARTIFACT, WATCHED = "sae", "watched.npy"


class Encoder(NamedTuple):
    """The parameters of the encoder, of all features or of those that are watched."""

    W_enc: Array
    b_enc: Array
    b_dec: Array


def plain_file(folder: Path, use: str) -> Path:
    """Return the path of the plain ONNX export for a use."""
    return folder / f"plain-{use}.onnx"


def product_file(folder: Path, use: str) -> Path:
    """Return the path of the encoder's product for a use."""
    return folder / f"product-{use}.onnx"


def input_file(folder: Path, rows: int) -> Path:
    """Return the path of the inputs with this number of rows."""
    return folder / f"x-{rows}.npy"


def load_weights(folder: Path) -> dict[str, Array]:
    """Return the SAE's parameters by name."""
    return load_file(folder / ARTIFACT / "weights.safetensors")


def load_encoder(folder: Path, use: str) -> Encoder:
    """Return the part of the encoder that a use needs, contiguous in memory."""
    weights = load_weights(folder)
    encoder = Encoder(weights["W_enc"], weights["b_enc"], weights["b_dec"])
    if use != WATCH:
        return encoder
    ids = np.load(folder / WATCHED)
    return Encoder(np.ascontiguousarray(encoder.W_enc[:, ids]), encoder.b_enc[ids], encoder.b_dec)


def preactivations_of_product(product: Array, encoder: Encoder) -> Array:
    """Return acts_pre from the product of the input and `W_enc`."""
    return product + (encoder.b_enc - encoder.b_dec @ encoder.W_enc)

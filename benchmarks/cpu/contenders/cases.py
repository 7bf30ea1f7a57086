"""The folder that every contender of one SAE reads, so that the weights and the inputs are identical for all.

    sae/            the artifact, whose weights PyTorch loads too
    plain.onnx      the module as `torch.onnx.export` writes it
    product.onnx    the encoder's product alone
    x-ROWS.npy      the inputs, by number of rows

`benchmarks/cpu/prepare.py` writes it. This module does not import PyTorch, because some processes run without it.
"""

from pathlib import Path

ARTIFACT, PLAIN_FILE, PRODUCT_FILE = "sae", "plain.onnx", "product.onnx"


def input_file(folder: Path, rows: int) -> Path:
    """Return the path of the inputs with this number of rows."""
    return folder / f"x-{rows}.npy"

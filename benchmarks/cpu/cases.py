"""A case: a folder with what every contender of one SAE reads, the weights and the inputs identical for all.

    sae/            the artifact; its weights are those that PyTorch loads, too
    plain.onnx      the module as `torch.onnx.export` writes it
    product.onnx    the encoder's product alone
    x-ROWS.npy      the inputs, by number of rows

`prepare.py` writes it; this module does not import PyTorch, so that the processes that do without can read it.
"""

from pathlib import Path

ARTIFACT, PLAIN_FILE, PRODUCT_FILE = "sae", "plain.onnx", "product.onnx"


def input_file(folder: Path, rows: int) -> Path:
    """Return where the inputs with so many rows are."""
    return folder / f"x-{rows}.npy"

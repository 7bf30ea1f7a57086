"""Goodfire: a `.pt` or `.pth` file with two `torch.nn.Linear` layers, without a config.

The activation function is ReLU, and `b_dec` is not subtracted from the input.

Source: the published files of Llama 3.1 8B and Llama 3.3 70B; SAELens 6.54, `get_goodfire_huggingface_loader`.
"""

from pathlib import Path

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors
from ..pickled import holds
from ..renaming import rename
from ..request import Request

TITLE = "Goodfire"
NAME = "Goodfire, .pt or .pth with encoder_linear and decoder_linear"
ARCHITECTURES = ("standard",)

NAMES = {
    "encoder_linear.weight": "W_enc",
    "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec",
    "decoder_linear.bias": "b_dec",
}
TENSORS = tuple(NAMES)


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file with an encoder and a decoder of these names."""
    return holds(path, "encoder_linear.weight", "decoder_linear.weight")


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Goodfire file. The file does not name its hook, so `hook_name` is empty.

    Raises:
        CheckpointError: The file is damaged, or holds other tensors.
    """
    tensors = rename(read_tensors(path), NAMES, str(path))
    dtype = choose_dtype(tensors, path, request)
    d_in, d_sae = matrix_shape(tensors, "W_enc", path)
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "", "dtype": dtype, "apply_b_dec_to_input": False}
    return build("standard", config, tensors, str(path))

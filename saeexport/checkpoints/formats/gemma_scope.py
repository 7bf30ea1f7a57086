"""Gemma Scope: `params.npz` with the tensors of a JumpReLU SAE, without a config.

`d_in` and `d_sae` are taken from the shape of `W_enc`. The file does not name its hook, so `hook_name` is empty.
Transcoders have the same files and are read as SAEs: their features and `hook_sae_recons` are right, but their error
term is not. The SAEs on the embedding take the embedding as it is stored, before the model multiplies it by
`sqrt(d_in)`.

Source: Lieberum et al. 2024 (arXiv:2408.05147); SAELens 6.54, `gemma_2_sae_huggingface_loader`.
"""

from pathlib import Path

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import matrix_shape, only_dtype, read_tensors
from ..request import Request

WEIGHTS = "params.npz"

TITLE = "Gemma Scope"
NAME = f"Gemma Scope, {WEIGHTS} or a folder with it"
ARCHITECTURES = ("jumprelu",)


def recognises(path: Path) -> bool:
    """Tell whether `path` is a `.npz` file or a folder with `params.npz`."""
    return _file(path).suffix == ".npz" and _file(path).is_file()


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Gemma Scope file.

    Raises:
        CheckpointError: The file is damaged, or its tensors are not those of a JumpReLU SAE.
    """
    file = _file(path)
    tensors = read_tensors(file)
    dtype = only_dtype(tensors, file)
    d_in, d_sae = matrix_shape(tensors, "W_enc", file)
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "", "dtype": dtype, "apply_b_dec_to_input": False}
    return build("jumprelu", config, tensors, str(file))


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path

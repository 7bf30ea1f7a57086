"""Qwen Scope: `layer<n>.sae.pt`, a dict with the tensors of a top-k SAE; k is in the name of the repository.

    W_enc [d_sae, d_in],  W_dec [d_in, d_sae],  b_enc [d_sae],  b_dec [d_in]

The matrices have the orientation of `torch.nn.Linear`, whatever their names suggest, and are transposed. `b_dec` is not
subtracted from the input. A repository is called `SAE-Res-<model>-W<width / 1024>K-L0_<k>`; the reader takes k from the
nearest folder above the file with such a name, `models--Qwen--SAE-Res-...` of the Hugging Face Hub's cache included.

Source: the model cards of huggingface.co/Qwen/SAE-Res-Qwen3.5-2B-Base-W32K-L0_50 and others; SAELens 6.54,
`qwen_scope_sae_huggingface_loader`.
"""

import re
from pathlib import Path

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors
from ..folders import search_above
from ..pickled import holds
from ..renaming import SAME, rename
from ..request import Request

TITLE = "Qwen Scope"
NAME = "Qwen Scope, layer<n>.sae.pt in a folder named SAE-Res-<model>-W<width>K-L0_<k>"
ARCHITECTURES = ("topk",)

TENSORS = tuple(SAME)

_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(?P<model>.+)-W(?P<width>\d+)K-L0_(?P<k>\d+)")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file of this name that holds the tensors of an SAE."""
    return _FILE.fullmatch(path.name) is not None and holds(path, *SAME)


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a layer.

    Raises:
        CheckpointError: The file is damaged, no folder above it names k, or the width in that name is another.
    """
    repository = search_above(path, _REPOSITORY)
    if repository is None:
        raise CheckpointError(
            f"{path} is a layer of Qwen Scope, which does not hold k: its repository's name does. Put the file into a "
            "folder of that name, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50."
        )
    tensors = rename(read_tensors(path), SAME, str(path), transposed=("W_enc", "W_dec"))
    d_in, d_sae = matrix_shape(tensors, "W_enc", path)
    if d_sae != 1024 * int(repository["width"]):
        raise CheckpointError(
            f"{path} holds {d_sae} features, but lies in {repository[0]}, whose SAEs have "
            f"{1024 * int(repository['width'])}. Put it into the folder of its own repository."
        )
    layer = _FILE.fullmatch(path.name)
    assert layer is not None
    config = {
        "d_in": d_in,
        "d_sae": d_sae,
        "k": int(repository["k"]),
        "hook_name": f"blocks.{layer[1]}.hook_resid_post",
        "model_name": f"Qwen/{repository['model']}",
        "dtype": choose_dtype(tensors, path, request),
        "apply_b_dec_to_input": False,
    }
    return build("topk", config, tensors, str(path))

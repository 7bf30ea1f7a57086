"""qresearch's SAEs of Llama models, such as DeepSeek R1 distilled: `<model>-SAE-l<layer>.pt`, without a config.

The file is the state dict of two `torch.nn.Linear` layers, `encoder` and `decoder`. The activation function is ReLU,
and `b_dec` is not subtracted from the input. Other libraries store the same names with other equations, so the name of
the file decides.

Source: huggingface.co/qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19; SAELens 6.54,
`deepseek_r1_sae_huggingface_loader`.
"""

import re
from pathlib import Path

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors
from ..pickled import holds
from ..renaming import LINEAR_LAYERS, rename
from ..request import Request

TITLE = "DeepSeek R1"
NAME = "DeepSeek R1 (qresearch), <model>-SAE-l<layer>.pt with encoder and decoder"
ARCHITECTURES = ("standard",)

TENSORS = tuple(LINEAR_LAYERS)

_FILE = re.compile(r"(.+)-SAE-l(\d+)\.pth?")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file of this name with an encoder and a decoder."""
    return _FILE.fullmatch(path.name) is not None and holds(path, *LINEAR_LAYERS)


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a file.

    Raises:
        CheckpointError: The file is damaged, or holds other tensors.
    """
    match = _FILE.fullmatch(path.name)
    assert match is not None
    tensors = rename(read_tensors(path), LINEAR_LAYERS, str(path))
    d_in, d_sae = matrix_shape(tensors, "W_enc", path)
    config = {
        "d_in": d_in,
        "d_sae": d_sae,
        "hook_name": f"blocks.{match[2]}.hook_resid_post",
        "model_name": match[1],
        "dtype": choose_dtype(tensors, path, request),
        "apply_b_dec_to_input": False,
    }
    return build("standard", config, tensors, str(path))

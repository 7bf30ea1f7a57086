"""Gemma Scope: `params.npz` with the tensors of a JumpReLU SAE or transcoder, without a config.

The names may be in lower case (`w_enc`). `d_in`, `d_sae` and `d_out` are taken from the shapes. The file tells neither
its hook nor whether it is a transcoder: `b_dec` of both has the width of the model. The folders above it do, if they
are named as in the repositories, `google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`; without them the
hook's name is empty, and the caller says whether it is a transcoder. `b_dec` is not subtracted from the input.

The SAEs on the embedding take the embedding as it is stored, before the model multiplies it by `sqrt(d_in)`; their
hook's name is empty.

Source: Lieberum et al. 2024 (arXiv:2408.05147); SAELens 6.54, `gemma_2_sae_huggingface_loader` and
`gemma_2_transcoder_huggingface_loader`.
"""

import re
from pathlib import Path
from typing import Any

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import matrix_shape, only_dtype, read_tensors
from ..request import Request

WEIGHTS = "params.npz"

TITLE = "Gemma Scope"
NAME = f"Gemma Scope, {WEIGHTS} or a folder with it"
ARCHITECTURES = ("jumprelu", "jumprelu_transcoder")

LOWER_CASE = {"w_enc": "W_enc", "w_dec": "W_dec"}
TENSORS = [{"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}]

HOOKS = {
    "res": ("hook_resid_post", ""),
    "mlp": ("hook_mlp_out", ""),
    "att": ("attn.hook_z", ""),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""TransformerLens names of the input and of the prediction within a block, by the end of a repository's name."""

_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)(?![a-z])")
_LAYER = re.compile(r"layer_(\d+)")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a `.npz` file or a folder with `params.npz`."""
    return _file(path).suffix == ".npz" and _file(path).is_file()


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Gemma Scope file.

    Raises:
        CheckpointError: The file is damaged, or its tensors are not those of a JumpReLU SAE.
    """
    file = _file(path)
    tensors = {LOWER_CASE.get(name, name): tensor for name, tensor in read_tensors(file).items()}
    dtype = only_dtype(tensors, file)
    d_in, d_sae = matrix_shape(tensors, "W_enc", file)
    names = _names(file)
    config = {"d_in": d_in, "d_sae": d_sae, "dtype": dtype, "apply_b_dec_to_input": False, **names}
    told: bool | None = request.take("transcoder")
    if told is False or (told is None and not any("transcoder" in part for part in file.absolute().parts)):
        config.pop("hook_name_out")
        return build("jumprelu", config, tensors, str(file))
    if told is None:
        request.notes.append(f"It is read as a transcoder, because the path says so: {file.absolute()}.")
    config["d_out"] = matrix_shape(tensors, "W_dec", file)[1]
    return build("jumprelu_transcoder", config, tensors, str(file))


def _names(file: Path) -> dict[str, Any]:
    """Return the names of the hooks and of the model that the folders above a file tell; empty names if they do not."""
    parts = file.absolute().parts
    repository = next(filter(None, (_REPOSITORY.search(part) for part in reversed(parts))), None)
    layer = next(filter(None, (_LAYER.fullmatch(part) for part in reversed(parts))), None)
    if repository is None or layer is None:
        return {"hook_name": "", "hook_name_out": ""}
    point_in, point_out = HOOKS[repository[3]]
    return {
        "hook_name": f"blocks.{layer[1]}.{point_in}",
        "hook_name_out": f"blocks.{layer[1]}.{point_out}" if point_out else "",
        "model_name": f"google/gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}",
    }


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path

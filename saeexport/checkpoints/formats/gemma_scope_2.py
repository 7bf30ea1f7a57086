"""Gemma Scope 2: `config.json` beside `params.safetensors`, for JumpReLU SAEs and transcoders.

The tensors have lower-case names, and the skip connection is stored as `affine_skip_connection [d_in, d_out]`, the
transpose of `W_skip`. `config.json` names activations as Hugging Face does. `hook_name` is the TransformerLens name of
the same activation, and empty where TransformerLens has no such hook, as for the input of a transcoder.

Source: the config of the published files; SAELens 6.54, `gemma_3_sae_huggingface_loader`.
"""

import re
from pathlib import Path

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import folder_with, matrix_shape, only_dtype, read_json, read_tensors
from ..options import Options
from ..request import Request

CONFIG = "config.json"
WEIGHTS = "params.safetensors"

TITLE = "Gemma Scope 2"
NAME = f"Gemma Scope 2, a folder with {CONFIG} and {WEIGHTS}"
FILES = (CONFIG, WEIGHTS)
ARCHITECTURES = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
TENSORS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")

NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
HOOKS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""TransformerLens names within a block, by Hugging Face's names within `model.layers.<n>`."""


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, or one of the files."""
    return folder_with(path, CONFIG, WEIGHTS) is not None


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Gemma Scope 2 folder.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    folder = folder_with(path, CONFIG, WEIGHTS)
    assert folder is not None
    source = str(folder / WEIGHTS)
    tensors = {NAMES.get(name, name): tensor for name, tensor in read_tensors(folder / WEIGHTS).items()}
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T if tensors["W_skip"].ndim == 2 else tensors["W_skip"]
    dtype = only_dtype(tensors, source)

    options = Options(read_json(folder / CONFIG), str(folder / CONFIG), request)
    options.choose("architecture", ("jump_relu",))
    point_in = options.take("hf_hook_point_in", str, "")
    point_out = options.take("hf_hook_point_out", str, point_in)
    kind = options.choose("type", ("sae", "transcoder"), "sae" if point_out == point_in else "transcoder")
    skip = options.take("affine_connection", bool, False)
    d_in, d_sae = matrix_shape(tensors, "W_enc", source)
    width = options.take("width", int, d_sae)
    if width != d_sae:
        raise options.refused("width", width, f"{WEIGHTS} holds {d_sae} features, so one of the two is of another SAE")
    model_name = options.take("model_name", str, None)
    options.finish(("l0",))
    config = {
        "d_in": d_in,
        "d_sae": d_sae,
        "hook_name": _hook_name(point_in),
        "model_name": model_name,
        "dtype": dtype,
        "apply_b_dec_to_input": False,
    }
    if kind == "sae":
        if skip or point_out != point_in:
            raise CheckpointError(
                f"{options.source} is of an SAE with affine_connection {skip} from {point_in!r} to {point_out!r}; only "
                "a transcoder can have a skip connection, or predict another activation."
            )
        return build("jumprelu", config, tensors, source)
    config |= {"d_out": matrix_shape(tensors, "W_dec", source)[1], "hook_name_out": _hook_name(point_out)}
    return build("jumprelu_skip_transcoder" if skip else "jumprelu_transcoder", config, tensors, source)


def _hook_name(point: str) -> str:
    """Return the TransformerLens name of an activation; an empty string if there is none."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", point)
    if match is None or match[2] not in HOOKS:
        return ""
    return f"blocks.{match[1]}.{HOOKS[match[2]]}"

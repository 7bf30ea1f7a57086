"""Gemma Scope 2: `config.json` beside `params.safetensors`, for JumpReLU SAEs and transcoders.

The tensors have lower-case names, and the skip connection is stored as `affine_skip_connection [d_in, d_out]`, the
transpose of `W_skip`. `config.json` names activations as Hugging Face does. `hook_name` is the TransformerLens name of
the same activation, and empty where TransformerLens has no such hook, as for the input of a transcoder.

Some folders have no `config.json`. The folders above then tell what it would say, if they are named as in the
repositories: `google/gemma-scope-2-4b-pt/transcoder/layer_9_width_16k_l0_small_affine`.

Source: the config of the published files; SAELens 6.54, `gemma_3_sae_huggingface_loader`,
`_infer_gemma_3_raw_cfg_dict`.
"""

import re
from pathlib import Path
from typing import Any

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, folder_with, matrix_shape, read_json, read_tensors
from ..finding import tensor_shapes
from ..folders import search_above
from ..options import Options
from ..renaming import rename_known
from ..request import Request

CONFIG = "config.json"
WEIGHTS = "params.safetensors"

TITLE = "Gemma Scope 2"
NAME = f"Gemma Scope 2, a folder with {WEIGHTS} and mostly {CONFIG}"
ARCHITECTURES = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
TENSORS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")

NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
HOOKS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""TransformerLens names within a block, by Hugging Face's names within `model.layers.<n>`."""

PLACES = {
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
    "resid_post": ("output", "output"),
    "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input"),
    "mlp_out": ("post_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}
"""Hugging Face's names of the input and the prediction within `model.layers.<n>`, by how a folder's name begins."""

_REPOSITORY = re.compile(r"gemma-scope-2-(\d+[bm])-(pt|it)")
_LAYER = re.compile(r"^layer_(\d+)")
_PLACE = re.compile(f"^({'|'.join(PLACES)})")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with the tensors, or one of the files, and the tensors have lower-case names."""
    folder = folder_with(path, CONFIG, WEIGHTS) or folder_with(path, WEIGHTS)
    return folder is not None and ((folder / CONFIG).is_file() or "w_enc" in tensor_shapes(folder / WEIGHTS))


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Gemma Scope 2 folder.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    folder = folder_with(path, CONFIG, WEIGHTS) or folder_with(path, WEIGHTS)
    assert folder is not None
    source = str(folder / WEIGHTS)
    tensors = rename_known(read_tensors(folder / WEIGHTS), NAMES, source)
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T if tensors["W_skip"].ndim == 2 else tensors["W_skip"]
    dtype = choose_dtype(tensors, source, request)

    if (folder / CONFIG).is_file():
        options = Options(read_json(folder / CONFIG), str(folder / CONFIG), request)
    else:
        options = Options(_inferred(folder, tensors, request), f"What the path of {source} says", request)
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


def _inferred(folder: Path, tensors: dict[str, torch.Tensor], request: Request) -> dict[str, Any]:
    """Return the config of a folder without one, from its tensors and the names of the folders above them.

    The nearest folder that is named after an activation decides.

    Raises:
        CheckpointError: Neither these nor the caller tell whether it is a transcoder.
    """
    repository, layer, named = (search_above(folder, pattern) for pattern in (_REPOSITORY, _LAYER, _PLACE))
    place = None if named is None else named[0]
    skip = "W_skip" in tensors
    transcoder: bool | None = request.take("transcoder")
    if transcoder is None:
        transcoder = place == "transcoder" if place is not None else skip or None
    if transcoder is None:
        raise CheckpointError(
            f"{folder} has no {CONFIG}, and no folder above it is named after an activation ({', '.join(PLACES)}), so "
            "that it may be an SAE or a transcoder. Say which: --transcoder or --no-transcoder, or in Python "
            "transcoder=True or False."
        )
    config: dict[str, Any] = {
        "architecture": "jump_relu",
        "type": "transcoder" if transcoder else "sae",
        "affine_connection": skip,
    }
    if repository is not None:
        config["model_name"] = f"google/gemma-3-{repository[1]}-{repository[2]}"
    if layer is not None and place is not None:
        point_in, point_out = PLACES[place]
        config["hf_hook_point_in"] = f"model.layers.{layer[1]}.{point_in}"
        config["hf_hook_point_out"] = f"model.layers.{layer[1]}.{point_out}"
    return config


def _hook_name(point: str) -> str:
    """Return the TransformerLens name of an activation; an empty string if there is none."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", point)
    if match is None or match[2] not in HOOKS:
        return ""
    return f"blocks.{match[1]}.{HOOKS[match[2]]}"

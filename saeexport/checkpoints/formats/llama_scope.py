"""Llama Scope: `hyperparams.json` beside `checkpoints/final.safetensors`, for JumpReLU SAEs with a single threshold.

These SAEs take inputs scaled by `s = sqrt(d_in) / average norm`. The reader folds the scale into the weights:

    W_enc * s,  W_dec / s,  b_dec / s,  threshold * s  [and / the row norms of W_dec: sparsity_include_decoder_norm]

The features are those of SAELens, which are not multiplied by the norms of the decoder; the norms of published SAEs
are 1.

Source: He et al. 2024 (arXiv:2410.20526); github.com/OpenMOSS/Language-Model-SAEs, `SparseAutoEncoder.encode`; SAELens
6.54, `llama_scope_sae_huggingface_loader` and `fold_activation_norm_scaling_factor`.
"""

from pathlib import Path

import torch

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, dtype_names, matrix_shape, read_json, read_tensors
from ..folding import divided_by_norms, fold
from ..normalization import check_factor
from ..options import Options
from ..renaming import LINEAR_LAYERS, rename
from ..request import Request

CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"

TITLE = "Llama Scope"
NAME = f"Llama Scope, a folder with {CONFIG} and {WEIGHTS}"
ARCHITECTURES = ("jumprelu",)

TENSORS = tuple(LINEAR_LAYERS)

_TRAINING = (  # options of the training
    "device seed expansion_factor top_k k_warmup_steps lp l1_coefficient l1_coefficient_warmup_steps bias_init_method "
    "init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose decoder_exactly_fixed_norm "
    "use_batch_norm_mse use_ghost_grads tp_size ddp_size sae_pretrained_name_or_path strict_loading"
)
WITHOUT_EFFECT = frozenset(_TRAINING.split())

REQUIRED = {"use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "use_glu_encoder": False}
"""Options with the only value that the readers of OpenMOSS' SAEs support, which later releases leave out."""


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Llama Scope folder.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    source = str(path / WEIGHTS)
    tensors = rename(read_tensors(path / WEIGHTS), LINEAR_LAYERS, source)

    options = Options(read_json(path / CONFIG), str(path / CONFIG), request)
    options.choose("act_fn", ("jumprelu",))
    options.choose("norm_activation", ("dataset-wise",))
    for key, needed in REQUIRED.items():
        options.require(key, needed)
    said = options.take_dtype()
    if said is not None and str(said).removeprefix("torch.") != (found := dtype_names(tensors)):
        raise options.refused("dtype", str(said), f"{WEIGHTS} holds {found}")
    config = {
        "d_in": options.take("d_model", int),
        "d_sae": options.take("d_sae", int),
        "hook_name": options.take("hook_point_in", str, ""),
        "dtype": choose_dtype(tensors, source, request),
        "apply_b_dec_to_input": False,
    }
    point_out = options.take("hook_point_out", str, config["hook_name"])
    if point_out != config["hook_name"]:
        raise options.refused("hook_point_out", point_out, "it must equal hook_point_in: transcoders are not supported")
    d_in, d_sae = matrix_shape(tensors, "W_enc", source)  # `build` refuses a config that says others
    scale = d_in**0.5 / _average_norm(options)
    check_factor(scale, source)
    if (single := options.take("jump_relu_threshold", float)) < 0:
        raise options.refused("jump_relu_threshold", single, "with a negative threshold, features can be negative")
    threshold = torch.full((d_sae,), single * scale, dtype=torch.float64)
    if options.take("sparsity_include_decoder_norm", bool, True):
        threshold = divided_by_norms(threshold, tensors["W_dec"])
    options.finish(WITHOUT_EFFECT)
    tensors["threshold"] = threshold
    return build("jumprelu", config, fold(tensors, config["dtype"], input_scale=scale), source)


def _average_norm(options: Options) -> float:
    """Return the average norm of the activations that the SAE was trained on.

    Raises:
        CheckpointError: The norm is missing or not positive, or differs between input and output.
    """
    norms = options.take("dataset_average_activation_norm", dict)
    norm = norms.get("in")
    if not isinstance(norm, float) or not norm > 0 or norms != {"in": norm, "out": norm}:
        raise options.refused(
            "dataset_average_activation_norm", norms, "it must have the same positive number for 'in' and 'out'"
        )
    return norm

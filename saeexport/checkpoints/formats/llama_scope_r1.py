"""Llama Scope R1: `config.json` beside `sae_weights.safetensors`, as OpenMOSS' lm_saes writes JumpReLU SAEs.

With `s = sqrt(d_in) / dataset_average_activation_norm.<hook>`, a tensor of the file, or 1 if `norm_activation` is
"inference", and `n` the row norms of `W_dec`, or 1 without `sparsity_include_decoder_norm`:

    acts_pre  = s * input @ W_enc + b_enc
    acts_post = acts_pre where acts_pre * n > exp(log_jumprelu_threshold), else 0
    recons    = (acts_post @ W_dec + b_dec) / s

The reader folds `s` into `W_enc`, `W_dec` and `b_dec`, and divides the thresholds by `n`. SAELens does not divide; the
norms of published SAEs are 1. Later releases call the tensors W_E, b_E, W_D and b_D and do not transpose the matrices.

Source: github.com/OpenMOSS/Language-Model-SAEs, `SparseAutoEncoder.encode`, `compute_norm_factor` and
`full_state_dict`; SAELens 6.54, `llama_scope_r1_distill_sae_huggingface_loader` and its registry's
`norm_scaling_factor`.
"""

import math
from pathlib import Path

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors
from ..finding import find
from ..folding import divided_by_norms, fold
from ..normalization import check_factor
from ..options import Options
from ..renaming import LINEAR_LAYERS, rename
from ..request import Request
from ..unsupported import OTHER_TOKENS, SEVERAL_LAYERS
from .llama_scope import REQUIRED

CONFIG = "config.json"
WEIGHTS = "sae_weights.safetensors"

TITLE = "Llama Scope R1"
NAME = f"Llama Scope R1, a folder with {CONFIG} and {WEIGHTS}"
ARCHITECTURES = ("jumprelu",)

NAMES = LINEAR_LAYERS | {"log_jumprelu_threshold": "threshold"}
LATER_NAMES = {
    "W_E": "W_enc",
    "b_E": "b_enc",
    "W_D": "W_dec",
    "b_D": "b_dec",
    "activation_function.log_jumprelu_threshold": "threshold",
}
TENSORS = tuple(NAMES)
NORM = "dataset_average_activation_norm."

_OTHERS = (  # options of the training, of kernels and of other activation functions
    "device dtype top_k jump_relu_threshold jumprelu_threshold_window promote_act_fn_dtype use_triton_kernel "
    "sparsity_threshold_for_triton_spmm_kernel sparsity_threshold_for_csr sae_pretrained_name_or_path strict_loading "
    "force_unit_decoder_norm"
)
WITHOUT_EFFECT = frozenset(_OTHERS.split())

UNSUPPORTED = {
    "crosscoder": SEVERAL_LAYERS,
    "clt": SEVERAL_LAYERS,
    "lorsa": OTHER_TOKENS,
    "molt": "its features are linear maps of the input, not directions",
}
"""Kinds of lm_saes that a HookedSAE cannot be, with the reason."""


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, or one of the files."""
    found = find(path, CONFIG, WEIGHTS)
    return found is not None and found.named


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a folder.

    Raises:
        CheckpointError: A file is damaged, an option is unknown, or the norm of the activations is missing.
    """
    found = find(path, CONFIG, WEIGHTS)
    assert found is not None
    options = Options(found.config, found.config_source, request)
    options.choose("sae_type", ("sae",), "sae", unsupported=UNSUPPORTED)
    options.choose("act_fn", ("jumprelu",))
    for key, needed in REQUIRED.items():
        options.require(key, needed, needed)
    hook_name = options.take("hook_point_in", str)
    if (hook_out := options.take("hook_point_out", str, hook_name)) != hook_name:
        raise options.refused("hook_point_out", hook_out, "it must equal hook_point_in: transcoders are not supported")

    source = str(found.weights)
    stored = read_tensors(found.weights)
    norms = {name.removeprefix(NORM): stored.pop(name) for name in sorted(stored) if name.startswith(NORM)}
    tensors = rename(stored, LATER_NAMES if "W_E" in stored else NAMES, source)
    threshold = tensors.pop("threshold").double().exp()
    config = {
        "d_in": options.take("d_model", int),
        "hook_name": hook_name,
        "dtype": choose_dtype(tensors, source, request),
        "apply_b_dec_to_input": False,
    }
    features = config["d_in"] * options.take("expansion_factor", float)
    config["d_sae"] = int(features) if math.isfinite(features) else 0  # which `build` refuses
    if options.take("sparsity_include_decoder_norm", bool, True):
        threshold = divided_by_norms(threshold, tensors["W_dec"])
    d_in, _ = matrix_shape(tensors, "W_enc", source)  # `build` refuses a config that says another
    normalization = options.choose("norm_activation", ("dataset-wise", "inference"), "dataset-wise")
    options.finish(WITHOUT_EFFECT)

    factor = 1.0 if normalization == "inference" else _factor(norms.get(hook_name), d_in, source, request)
    check_factor(factor, source)
    tensors = fold(tensors, config["dtype"], input_scale=factor)
    tensors["threshold"] = threshold.to(config["dtype"])
    return build("jumprelu", config, tensors, source)


def _factor(norm: torch.Tensor | None, d_in: int, source: str, request: Request) -> float:
    """Return what the input is multiplied by, from the norm in the file, or from the caller if there is none.

    Raises:
        CheckpointError: Neither gives it, or the norm is not one positive number.
    """
    if norm is None:
        given: float | None = request.take("norm_scaling_factor")
        if given is None:
            raise CheckpointError(
                f"{source} does not hold the average norm of the activations, {NORM}<hook>, by which the input is "
                "scaled. Give sqrt(d_in) / norm: --norm-scaling-factor F, or in Python norm_scaling_factor=F."
            )
        return given
    value = float(norm) if norm.numel() == 1 else math.nan
    if not (value > 0 and math.isfinite(value)):
        raise CheckpointError(f"{source}: the average norm of the activations is {norm.tolist()}; it must be positive.")
    return math.sqrt(d_in) / value

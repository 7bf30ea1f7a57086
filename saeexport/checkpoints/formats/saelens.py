"""SAELens 6 and later: `cfg.json`, whose `metadata` names the model and the hook, beside `sae_weights.safetensors`.

The tensors have the names and the orientation of HookedSAE's parameters. Two options are folded into them:

    rescale_acts_by_decoder_norm            W_enc * n, b_enc * n, W_dec / n, with n the row norms of W_dec
    batchtopk and matryoshka_batchtopk      then threshold = topk_threshold, as jumprelu (checkpoints in training)

Features and reconstruction are those of SAELens. Its `hook_sae_acts_pre` is before the multiplication by n; that of
HookedSAE is after it, where the k largest are chosen.

`metadata` is of where the SAE belongs. SAELens computes with nothing in it and lets everybody add to it, so that its
unknown keys are not refused.

With `hook_head_index`, the SAE takes one attention head of its hook, `[..., d_head]`.

Source: SAELens 6.54, `sae_lens/saes/*.py` (`SAEConfig`, `to_dict`, `process_state_dict_for_saving_inference`);
for heads `sae_lens/training/activations_store.py`.
"""

import re
from pathlib import Path
from typing import Any

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, read_json
from ..finding import find
from ..folding import fold, row_norms
from ..normalization import read_normalization
from ..options import Options
from ..request import RECORDED, Request, Source
from ..unsupported import LOOPS, OTHER_TOKENS

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
BESIDE = (SCALER,)

TITLE = "SAELens 6"
NAME = f"SAELens 6 and later, a folder with {CONFIG} (with metadata) and {WEIGHTS}"
ARCHITECTURES = (
    "standard",
    "jumprelu",
    "gated",
    "topk",
    "abstopk",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)

UNSUPPORTED = {"matching_pursuit": LOOPS, "temporal": OTHER_TOKENS}
"""Architectures of SAELens that a HookedSAE cannot be, with the reason."""

IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of checkpoints in training; finished SAEs are saved as jumprelu."""

_BELONGS = (  # where the SAE belongs
    "device hook_name hook_name_out hook_layer hf_hook_name "
    "hf_hook_name_out model_class_name model_from_pretrained_kwargs prepend_bos exclude_special_tokens context_size "
    "seqpos_slice dataset_path dataset_trust_remote_code sae_lens_version sae_lens_training_version"
)
_TRAINING = (  # options of the training
    "decoder_init_norm l1_coefficient l1_warm_up_steps lp_norm l0_coefficient l0_warm_up_steps target_l0 "
    "jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale jumprelu_ste_to_input "
    "pre_act_loss_coefficient aux_loss_coefficient use_sparse_activations topk_threshold_lr matryoshka_widths "
    "use_matryoshka_aux_loss"
)
WITHOUT_EFFECT = frozenset(f"{_BELONGS} {_TRAINING}".split())


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, or one of the files, and the config has `metadata`."""
    found = find(path, CONFIG, WEIGHTS)
    return found is not None and "metadata" in found.config


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a SAELens folder in the dtype of its config, as SAELens loads it.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    found = find(path, CONFIG, WEIGHTS)
    assert found is not None
    refuse_unfolded(found.weights.parent)
    return from_parts(*found.parts(), request)


def from_parts(
    contents: dict[str, Any], stored: dict[str, torch.Tensor], source: Source, request: Request
) -> HookedSAE:
    """Return the HookedSAE of a config, as `SAEConfig.to_dict` returns it, and a state dict.

    Raises:
        CheckpointError: An option is unknown, or a tensor does not fit; the message names it.
    """
    options = Options(contents, source.config, request)
    metadata = Options(options.take("metadata", dict), f"The metadata of {options.source}", request)
    architecture = options.choose("architecture", ARCHITECTURES + IN_TRAINING, unsupported=UNSUPPORTED)
    hook_name = metadata.take("hook_name", str, None) or options.take("hook_name", str, "")

    tensors = dict(stored)
    threshold = tensors.pop("topk_threshold", None) if architecture in IN_TRAINING else None
    config, factor = read_config(options, hook_name)
    for key in ("model_name", "neuronpedia_id"):
        config[key] = metadata.take(key, str, None) or config[key]
    if architecture.endswith("transcoder"):
        config["d_out"] = options.take("d_out", int)
        config["hook_name_out"] = metadata.take("hook_name_out", str, None) or options.take("hook_name_out", str, "")
    if architecture in ("topk", "abstopk"):
        config["k"] = options.take("k", int)
    elif architecture in ("jumprelu", *IN_TRAINING):
        options.take("k", object, None)  # that of a batch, used in training only
    rescaled = options.take("rescale_acts_by_decoder_norm", bool, False)
    if rescaled and architecture not in ("topk", "abstopk", *IN_TRAINING):
        raise options.refused("rescale_acts_by_decoder_norm", True, f"a {architecture} SAE has no such option")
    head = read_head(metadata, hook_name)
    head = read_head(options, hook_name) if head is None else head
    options.finish(WITHOUT_EFFECT)

    config["dtype"] = choose_dtype(tensors, source.tensors, request, config["dtype"])
    if architecture in IN_TRAINING:
        architecture = "jumprelu"
        if threshold is not None and threshold.numel() == 1 and "b_enc" in tensors:
            tensors["threshold"] = threshold.reshape(1).repeat(tensors["b_enc"].numel())
    norms = None
    if rescaled and "W_dec" in tensors:
        # The norms are those of the decoder that is divided by the factor. A row of zeros stays zero, where SAELens
        # divides by zero.
        norms = row_norms(tensors["W_dec"]) / factor
        if architecture == "jumprelu" and "threshold" in tensors:
            tensors["threshold"] = tensors["threshold"].double() / factor
    tensors = fold(tensors, config["dtype"], input_scale=factor, feature_scale=norms)
    return note_head(build(architecture, config, tensors, source.tensors), head, request)


def read_head(options: Options, hook_name: str, key: str = "hook_head_index") -> int | None:
    """Return the number of the only attention head that the SAE reads; None if it reads the whole activation.

    Raises:
        CheckpointError: The hook is not one of attention heads, or the SAE predicts a single head.
    """
    head: int | None = options.take(key, int, None)
    if head is not None and not re.search(r"hook_(rot_)?(z|q|k|v|result)$", hook_name):
        raise options.refused(key, head, f"{hook_name!r} is not an activation of attention heads")
    if (out := options.take("hook_head_index_out", int, None)) is not None:
        raise options.refused("hook_head_index_out", out, "transcoders that predict a single head are not supported")
    return head


def note_head(sae: HookedSAE, head: int | None, request: Request) -> HookedSAE:
    """Record in the SAE and in the notes which attention head it reads; return the SAE."""
    if head is not None:
        request.notes.append(f"It reads head {head} of {sae.cfg.hook_name}: pass x[..., {head}, :].")
        sae.provenance[f"{RECORDED}hook_head_index"] = str(head)
    return sae


def read_config(options: Options, hook_name: str) -> tuple[dict[str, Any], float]:
    """Return the options that all architectures share, and the factor of the input to fold into the weights.

    The keys are common to SAELens 6 and earlier releases.

    Raises:
        CheckpointError: An option is not supported.
    """
    reshaping = options.choose("reshape_activations", ("none", "hook_z"), "none")
    if reshaping == "hook_z" and hook_name and not hook_name.endswith("_z"):
        raise options.refused(
            "reshape_activations", reshaping, f"it needs a hook_name that ends in '_z', not {hook_name!r}"
        )
    d_sae = options.take("d_sae", int)
    normalization, factor = read_normalization(options, hook_name, d_sae)
    config = {
        "d_in": options.take("d_in", int),
        "d_sae": d_sae,
        "hook_name": hook_name,
        "model_name": options.take("model_name", str, None),
        "neuronpedia_id": options.take("neuronpedia_id", str, None),
        "dtype": options.take_dtype(),
        "apply_b_dec_to_input": options.take("apply_b_dec_to_input", bool, True),
        "normalize_activations": normalization,
    }
    return config, factor


def refuse_unfolded(folder: Path) -> None:
    """Refuse a checkpoint in training, whose scaling factor is in a file of its own and not yet in the weights.

    Raises:
        CheckpointError: The folder has such a file, with a factor in it.
    """
    if (folder / SCALER).is_file() and read_json(folder / SCALER).get("scaling_factor") is not None:
        raise CheckpointError(
            f"{folder / SCALER} still has the scaling factor: this is a checkpoint in training, without the "
            "factor in its weights. Export the finished SAE."
        )

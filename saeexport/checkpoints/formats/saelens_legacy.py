"""SAELens before 6: the file names of SAELens 6, and a flat `cfg.json`, often the whole config of the training run.

Missing options take the defaults of those releases: architecture standard, ReLU, `b_dec` subtracted from the input. A
standard SAE with the activation function "topk" is a top-k SAE. `scaling_factor` multiplies each feature's activation
before the decoder and is folded into `W_dec`; for some time SAELens wrote it as ones.

Source: SAELens 6.54, `handle_pre_6_0_config` and `read_sae_components_from_disk` in
`sae_lens/loading/pretrained_sae_loaders.py`; for `scaling_factor` SAELens 3, `SAE.decode`.
"""

from pathlib import Path
from typing import Any

import torch

from ...original.hooked_sae import NORMALIZATIONS, HookedSAE
from ..build import build
from ..files import choose_dtype
from ..finding import find
from ..folding import fold
from ..normalization import AVERAGE
from ..options import Options
from ..request import Request, Source
from . import state_dict
from .saelens import CONFIG, WEIGHTS, note_head, read_config, read_head, refuse_unfolded

TITLE = "SAELens before 6"
NAME = f"SAELens before 6, a folder with {CONFIG} and {WEIGHTS}"
ARCHITECTURES = ("standard", "jumprelu", "gated", "topk")

_BELONGS = (  # where the SAE belongs
    "model_class_name model_kwargs model_from_pretrained_kwargs hook_layer hook_eval "
    "hook_point_layer hook_point_eval hook_point_template prepend_bos "
    "context_size seqpos_slice exclude_special_tokens sae_lens_version sae_lens_training_version device dataset_path "
    "dataset_trust_remote_code is_dataset_tokenized streaming"
)
_TRAINING = (  # options of the training
    "act_store_device use_cached_activations cached_activations_path n_batches_in_buffer store_batch_size "
    "store_batch_size_prompts train_batch_size train_batch_size_tokens tokens_per_buffer training_tokens "
    "total_training_tokens finetuning_tokens finetuning_method b_dec_init_method expansion_factor "
    "normalize_sae_decoder noise_scale from_pretrained_path decoder_orthogonal_init decoder_heuristic_init "
    "init_encoder_as_decoder_transpose jumprelu_init_threshold jumprelu_bandwidth autocast autocast_lm compile_llm "
    "llm_compilation_mode compile_sae sae_compilation_mode adam_beta1 adam_beta2 mse_loss_normalization "
    "l1_coefficient lp_norm scale_sparsity_penalty_by_decoder_norm l1_warm_up_steps lr lr_scheduler_name "
    "lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles use_ghost_grads feature_sampling_window "
    "dead_feature_window dead_feature_threshold n_eval_batches eval_batch_size_prompts resume seed verbose "
    "n_checkpoints checkpoint_path log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb "
    "wandb_project wandb_id wandb_entity wandb_log_frequency eval_every_n_wandb_logs run_name log_weights_to_wandb "
    "decoder_heuristic_init_norm n_eval_seqs"
)
_BEFORE_RELEASES = (  # options of the training in configs that are older than SAELens 0.1, as of gpt2-small-res-jb
    "dead_feature_estimation_method feature_reinit_scale feature_sampling_method resample_batches"
)
WITHOUT_EFFECT = frozenset(f"{_BELONGS} {_TRAINING} {_BEFORE_RELEASES}".split())
"""Options of every release before 6, from 0.1 to 5.11, that do not change what a trained SAE computes."""


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, or one of the files, and the config lacks `metadata`.

    In a container of any library, the config must have a key that that of a HookedSAE state dict does not have.
    """
    found = find(path, CONFIG, WEIGHTS)
    if found is None or "metadata" in found.config:
        return False
    return found.named or ({"d_in", "d_sae"} <= set(found.config) and not set(found.config) <= set(state_dict.TYPES))


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
    """Return the HookedSAE of a flat config and a state dict.

    Raises:
        CheckpointError: An option is unknown, or a tensor does not fit; the message names it.
    """
    contents = dict(contents)
    if isinstance(switch := contents.get("normalize_activations"), bool):
        contents["normalize_activations"] = AVERAGE if switch else NORMALIZATIONS[0]
    options = Options(contents, source.config, request)
    named = [options.take(key, str, "") for key in ("hook_name", "hook_point")]
    hook_name = named[0] or named[1]
    config, input_scale = read_config(options, hook_name)
    architecture, k = _activation(options)
    if k is not None:
        config["k"] = k
    scaled = options.take("finetuning_scaling_factor", bool, False)
    head = read_head(options, hook_name)
    head = read_head(options, hook_name, "hook_point_head_index") if head is None else head
    options.finish(WITHOUT_EFFECT)

    config["dtype"] = choose_dtype(stored, source.tensors, request, config["dtype"])
    tensors = dict(stored)
    factor = _scaling_factor(tensors, scaled, options)
    tensors = fold(tensors, config["dtype"], input_scale=input_scale, decoder_scale=factor)
    return note_head(build(architecture, config, tensors, source.tensors), head, request)


def _activation(options: Options) -> tuple[str, int | None]:
    """Return the architecture, and k of a top-k SAE."""
    architecture = options.choose("architecture", ARCHITECTURES, "standard")
    key = "activation_fn_str"
    name = options.take(key, str, None) or options.take(key := "activation_fn", str, None)
    name = name or ("topk" if architecture == "topk" else "relu")
    arguments = Options(
        options.take("activation_fn_kwargs", dict, {}), f"activation_fn_kwargs of {options.source}", options.request
    )
    if name == "relu" and architecture != "topk":
        arguments.finish()
        return architecture, None
    if name == "topk" and architecture in ("standard", "topk"):
        k: int = arguments.take("k", int, None) or options.take("k", int)
        arguments.finish()
        return "topk", k
    known = {"standard": "relu or topk", "topk": "topk"}.get(architecture, "relu")
    raise options.refused(key, name, f"for a {architecture} SAE it must be {known}")


def _scaling_factor(tensors: dict[str, torch.Tensor], scaled: bool, options: Options) -> torch.Tensor | None:
    """Take `scaling_factor` from the tensors, and return it unless it is all ones.

    Raises:
        CheckpointError: The config says that there is none.
    """
    factor = tensors.pop("scaling_factor", None)
    if factor is None or torch.equal(factor, torch.ones_like(factor)):
        return None
    if not scaled:
        raise options.refused(
            "finetuning_scaling_factor", False, f"{WEIGHTS} has a scaling_factor that is not all ones"
        )
    if "W_dec" in tensors and factor.shape == tensors["W_dec"].shape[:1]:
        return factor
    tensors["scaling_factor"] = factor  # the shapes differ: `build` refuses it
    return None

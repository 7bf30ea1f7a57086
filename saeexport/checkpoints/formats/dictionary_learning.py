"""dictionary_learning: `ae.pt` beside `config.json`, whose `trainer` names the class of the dictionary.

Dictionaries that were saved during the training are `checkpoints/ae_<step>.pt` in the folder of `config.json`.

The classes are read as these architectures:

    AutoEncoder                            standard
    AutoEncoderNew                         standard, b_dec not subtracted
    GatedAutoEncoder                       gated
    AutoEncoderTopK                        topk; its threshold is not used
    BatchTopKSAE, MatryoshkaBatchTopKSAE   jumprelu; one threshold for all features
    JumpReluAutoEncoder                    jumprelu, b_dec not subtracted

The features are those of the stored weights. `load_dictionary` also scales the decoder of an AutoEncoder to unit norms,
so its features are these, multiplied by the original norms of the decoder.

Source: dictionary_learning 0.1.0, `dictionary.py`, `trainers/*.py`, `utils.py` (`load_dictionary`).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_json
from ..finding import Found, find
from ..options import Options
from ..renaming import SAME, rename
from ..request import Request, Source

CONFIG = "config.json"
WEIGHTS = "ae.pt"
CHECKPOINTS = "checkpoints"

TITLE = "dictionary_learning"
NAME = f"dictionary_learning, a folder with {CONFIG} and {WEIGHTS}, or checkpoints/ae_<step>.pt in it"
ARCHITECTURES = ("standard", "jumprelu", "gated", "topk")
TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "bias")

_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}


class Dictionary(NamedTuple):
    """How a class of dictionaries is read.

    Attributes:
        architecture: Architecture of the HookedSAE.
        names: HookedSAE's parameter for each tensor.
        subtracts: Whether the class subtracts `b_dec` from the input.
        scalars: Names of the one-element tensors that the class stores.
    """

    architecture: str
    names: dict[str, str]
    subtracts: bool = True
    scalars: tuple[str, ...] = ()


DICTIONARIES = {
    "AutoEncoder": Dictionary("standard", _LINEAR | {"bias": "b_dec"}),
    "AutoEncoderNew": Dictionary("standard", _LINEAR | {"decoder.bias": "b_dec"}, subtracts=False),
    "GatedAutoEncoder": Dictionary(
        "gated",
        {
            "encoder.weight": "W_enc",
            "decoder.weight": "W_dec",
            "decoder_bias": "b_dec",
            "gate_bias": "b_gate",
            "mag_bias": "b_mag",
            "r_mag": "r_mag",
        },
    ),
    "AutoEncoderTopK": Dictionary("topk", _LINEAR | {"b_dec": "b_dec"}, scalars=("k", "threshold")),
    "BatchTopKSAE": Dictionary("jumprelu", _LINEAR | {"b_dec": "b_dec"}, scalars=("k", "threshold")),
    "MatryoshkaBatchTopKSAE": Dictionary("jumprelu", SAME, scalars=("k", "threshold", "group_sizes")),
    "JumpReluAutoEncoder": Dictionary("jumprelu", SAME | {"threshold": "threshold"}, subtracts=False),
}

UNSUPPORTED = {
    "CrossCoder": "it reads several layers at once",
    "BatchTopKCrossCoder": "it reads several layers at once",
    "IdentityDict": "it has no parameters: its features are its input",
}
"""Classes that a HookedSAE cannot be, with the reason."""

_CHECKPOINT = re.compile(r"ae_\d+\.pt")

_TRAINING = (  # options of the training
    "trainer_class wandb_name device seed lr steps warmup_steps decay_start resample_steps l1_penalty "
    "k_anneal_steps penalty_warmup_steps initial_sparsity_penalty sparsity_loss_queue_length "
    "sparsity_coefficient adaptive_sparsity_penalty activation_queue_length steps_before_annealing "
    "weights_temperature lambda lambda_warm_steps gp_reg_coeff l0_penalty ghost_threshold "
    "sparsity_warmup_steps sparsity_function sparsity_penalty sparsity_queue_length n_sparsity_updates p_start p_end "
    "anneal_start anneal_end auxk_alpha top_k_aux threshold_beta threshold_start_step bandwidth target_l0 "
    "group_fractions group_weights group_sizes"
)
WITHOUT_EFFECT = frozenset(_TRAINING.split())


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, one of the files, or a dictionary of a training."""
    found = _find(path)
    return found is not None and "trainer" in found.config


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a dictionary.

    Raises:
        CheckpointError: A file is damaged, or the class or an option is unknown; the message names it.
    """
    found = _find(path)
    assert found is not None
    return from_parts(*found.parts(), request)


def _find(path: Path) -> Found | None:
    """Return the config and the place of the tensors; None if `path` is not a dictionary."""
    config = path.parent.parent / CONFIG
    if path.parent.name == CHECKPOINTS and _CHECKPOINT.fullmatch(path.name) and path.is_file() and config.is_file():
        return Found(read_json(config), str(config), path, True)
    return find(path, CONFIG, WEIGHTS)


def from_parts(
    contents: dict[str, Any], stored: dict[str, torch.Tensor], source: Source, request: Request
) -> HookedSAE:
    """Return the HookedSAE of a dictionary's config and state dict.

    Raises:
        CheckpointError: The class or an option is unknown, or a tensor does not fit; the message names it.
    """
    config = Options(contents, source.config, request)
    options = Options(config.take("trainer", dict), f"The trainer of {config.source}", request)
    buffer = config.take("buffer", dict, {})
    config.finish()
    dict_class = options.choose("dict_class", DICTIONARIES, unsupported=UNSUPPORTED)
    kind = DICTIONARIES[dict_class]

    tensors = rename(stored, kind.names, source.tensors, unused=kind.scalars)
    dtype = choose_dtype(tensors, source.tensors, request)
    d_in, d_sae = matrix_shape(tensors, "W_enc", source.tensors)
    settings: dict[str, Any] = {
        "d_in": options.take("activation_dim", int, d_in),
        "d_sae": options.take("dict_size", int, d_sae),
        "hook_name": _hook_name(options, buffer),
        "model_name": options.take("lm_name", str, None),
        "dtype": dtype,
        "apply_b_dec_to_input": kind.subtracts,
    }
    if dict_class == "JumpReluAutoEncoder":  # an attribute of the object, which no file stores
        settings["apply_b_dec_to_input"] = options.take("apply_b_dec_to_input", bool, kind.subtracts)
    if "k" in kind.scalars:
        k = _k(options, stored)
        if kind.architecture == "topk":
            settings["k"] = k
        else:
            tensors["threshold"] = _scalar(stored, "threshold", source.tensors).repeat(d_sae)
    options.finish(WITHOUT_EFFECT)
    return build(kind.architecture, settings, tensors, source.tensors)


def _k(options: Options, stored: dict[str, torch.Tensor]) -> int:
    """Return k from the config, or from the tensors if the config lacks it.

    Raises:
        CheckpointError: Both lack k, or their values differ.
    """
    k: int | None = options.take("k", int, None)
    if "k" not in stored and k is not None:
        return k
    found = int(_scalar(stored, "k", options.source).item())
    if k not in (None, found):
        raise options.refused("k", k, f"the k in {WEIGHTS} is {found}; one of the two belongs to another dictionary")
    return found


def _scalar(stored: dict[str, torch.Tensor], name: str, source: str) -> torch.Tensor:
    """Return a tensor with one element as a scalar tensor.

    Raises:
        CheckpointError: The tensor is missing, or does not have exactly one element.
    """
    if name not in stored or stored[name].numel() != 1:
        found = f"of shape {list(stored[name].shape)}" if name in stored else "missing"
        raise CheckpointError(f"{source}: the tensor {name!r} is {found}; it must have one element.")
    return stored[name].reshape(())


def _hook_name(options: Options, buffer: dict[str, Any]) -> str:
    """Return the TransformerLens name of the activations; an empty string if the config leaves it open."""
    layer, submodule = options.take("layer", int, None), options.take("submodule_name", str, None)
    certain = submodule == f"resid_post_layer_{layer}" and buffer.get("io", "out") == "out"
    return f"blocks.{layer}.hook_resid_post" if certain else ""

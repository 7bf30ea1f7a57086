"""OpenAI's autoencoders of GPT-2 small: a `.pt` file with tensors, the name of the activation function and k.

`pre_bias` is `b_dec` and `latent_bias` is `b_enc`. Top-k autoencoders normalise their input, ReLU autoencoders do not.
The normalisation is "layer_norm": the standard deviation is the same, and the 1e-5 is not undone either.

Source: github.com/openai/sparse_autoencoder, `sparse_autoencoder/model.py` (`LN`, and `Autoencoder.from_state_dict`,
whose top-k is followed by a ReLU).
"""

from pathlib import Path
from typing import Any

import torch

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape
from ..options import Options
from ..pickled import holds, read_pickle
from ..renaming import rename
from ..request import Request

TITLE = "OpenAI"
NAME = "OpenAI's sparse_autoencoder, .pt with pre_bias, latent_bias and activation"
ARCHITECTURES = ("standard", "topk")

NAMES = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
TENSORS = tuple(NAMES)
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file with both biases of these names."""
    return holds(path, "pre_bias", "latent_bias")


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of an autoencoder. The file does not name its hook, so `hook_name` is empty.

    Raises:
        CheckpointError: The file is damaged, or has an unknown activation function or option.
    """
    stored = read_pickle(path)
    tensors = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    options = Options({name: value for name, value in stored.items() if name not in tensors}, str(path), request)
    activation = options.choose("activation", ("ReLU", "TopK"), "ReLU")
    state = Options(options.take("activation_state_dict", dict, {}), f"The activation_state_dict of {path}", request)
    options.finish()

    tensors = rename(tensors, NAMES, str(path), unused=STATISTICS)
    d_in, d_sae = matrix_shape(tensors, "W_enc", path)
    config: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": d_sae,
        "hook_name": "",
        "dtype": choose_dtype(tensors, path, request),
    }
    if activation == "TopK":
        config |= {"k": state.take("k", int), "normalize_activations": "layer_norm"}
        state.choose("postact_fn", ("ReLU",))
    state.finish()
    return build("topk" if activation == "TopK" else "standard", config, tensors, str(path))

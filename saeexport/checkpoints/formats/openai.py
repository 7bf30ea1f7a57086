"""OpenAI's autoencoders of GPT-2 small: a `.pt` file with tensors, the activation's name and, for top-k, its k.

`pre_bias` is `b_dec`, `latent_bias` is `b_enc`. Those with top-k normalise their input, those with ReLU do not; the
normalisation is "layer_norm", with the same standard deviation and the 1e-5 likewise not undone.

Source: github.com/openai/sparse_autoencoder, `sparse_autoencoder/model.py` (`LN`, `Autoencoder.from_state_dict`, whose
top-k is followed by ReLU).
"""

from pathlib import Path
from typing import Any

import torch

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import matrix_shape, only_dtype
from ..options import Options
from ..pickled import holds, read_pickle
from ..renaming import rename

TITLE = "OpenAI"
NAME = "OpenAI's sparse_autoencoder, .pt with pre_bias, latent_bias and activation"
ARCHITECTURES = ("standard", "topk")

NAMES = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file with both biases."""
    return holds(path, "pre_bias", "latent_bias")


def read(path: Path) -> HookedSAE:
    """Return the HookedSAE of such a file; nothing says where it belongs, so `hook_name` is empty.

    Raises:
        CheckpointError: the file is not sound, or has an activation or something else that is not understood.
    """
    stored = read_pickle(path)
    tensors = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    options = Options({name: value for name, value in stored.items() if name not in tensors}, str(path))
    activation = options.choose("activation", ("ReLU", "TopK"), "ReLU")
    state = Options(options.take("activation_state_dict", dict, {}), f"The activation_state_dict of {path}")
    options.finish()

    tensors = rename(tensors, NAMES, str(path), unused=STATISTICS)
    d_in, d_sae = matrix_shape(tensors, "W_enc", path)
    config: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "hook_name": "", "dtype": only_dtype(tensors, path)}
    if activation == "TopK":
        config |= {"k": state.take("k", int), "normalize_activations": "layer_norm"}
        state.choose("postact_fn", ("ReLU",))
    state.finish()
    return build("topk" if activation == "TopK" else "standard", config, tensors, str(path))

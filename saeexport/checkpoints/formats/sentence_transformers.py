"""sentence-transformers' SparseAutoEncoder (CSR): `config.json` beside `model.safetensors`, in a folder of the model.

    c         = input normalised as "layer_norm" [if `normalize`] - pre_bias
    acts_post = relu(acts_pre) of the k largest acts_pre = c @ encoder.weight.T + latent_bias, else 0
    recons    = (acts_post @ encoder.weight + pre_bias), the normalisation undone

The decoder is the transpose of the encoder. safetensors stores the shared matrix once, `[d_sae, d_in]`, under the name
`encoder.weight` or `decoder.linear.weight`. `W_enc` is a view of it and `W_dec` a copy, so that the parameters of the
HookedSAE are as independent as in every other SAE.

Source: sentence-transformers 6.2, `sentence_transformers/sparse_encoder/modules/sparse_auto_encoder.py`; Wen et al.
2025 (arXiv:2503.01776).
"""

from pathlib import Path
from typing import Any

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype
from ..finding import find
from ..options import Options
from ..request import Request, Source

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

TITLE = "sentence-transformers"
NAME = f"sentence-transformers' SparseAutoEncoder, a folder with {CONFIG} (input_dim, hidden_dim) and {WEIGHTS}"
ARCHITECTURES = ("topk",)

SHARED = ("encoder.weight", "decoder.linear.weight")
BIASES = {"pre_bias": "b_dec", "latent_bias": "b_enc"}
STATISTICS = ("stats_last_nonzero",)
TENSORS = (*BIASES, SHARED[1], *STATISTICS)
WITHOUT_EFFECT = ("k_aux", "dead_threshold")  # options of the training


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, or one of the files, and the config has these keys."""
    found = find(path, CONFIG, WEIGHTS)
    return found is not None and {"input_dim", "hidden_dim", "k"} <= set(found.config)


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a folder.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    found = find(path, CONFIG, WEIGHTS)
    assert found is not None
    return from_parts(*found.parts(), request)


def from_parts(
    contents: dict[str, Any], stored: dict[str, torch.Tensor], source: Source, request: Request
) -> HookedSAE:
    """Return the HookedSAE of a config and a state dict.

    Raises:
        CheckpointError: A tensor is missing or unexpected, two copies of the matrix differ, or an option is unknown.
    """
    options = Options(contents, source.config, request)
    config: dict[str, Any] = {
        "d_in": options.take("input_dim", int),
        "d_sae": options.take("hidden_dim", int),
        "k": options.take("k", int),
        "hook_name": "",
        "normalize_activations": "layer_norm" if options.take("normalize", bool, False) else "none",
    }
    options.finish(WITHOUT_EFFECT)

    matrices = [stored[name] for name in SHARED if name in stored]
    missing = [name for name in BIASES if name not in stored] + ([] if matrices else [SHARED[0]])
    extra = sorted(set(stored) - {*SHARED, *BIASES, *STATISTICS})
    if missing or extra:
        raise CheckpointError(
            f"{source.tensors} lacks the tensors {missing} and has the unknown tensors {extra}; it must hold "
            f"{sorted((*BIASES, SHARED[0]))}."
        )
    if not all(torch.equal(matrices[0], matrix) for matrix in matrices[1:]):
        raise CheckpointError(
            f"{source.tensors} holds a {SHARED[0]} and a {SHARED[1]} that differ; a SparseAutoEncoder shares them."
        )
    tensors = {name: stored[stored_name] for stored_name, name in BIASES.items()}
    tensors |= {"W_enc": matrices[0].T if matrices[0].ndim == 2 else matrices[0], "W_dec": matrices[0].clone()}
    config["dtype"] = choose_dtype(tensors, source.tensors, request)
    return build("topk", config, tensors, source.tensors)

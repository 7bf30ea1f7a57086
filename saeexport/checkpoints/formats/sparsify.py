"""EleutherAI's sparsify: `cfg.json` beside `sae.safetensors` for top-k SAEs and transcoders, one folder per hook.

`W_dec` is `[d_sae, d_in]`, and `encoder.weight` is that of a `torch.nn.Linear`. sparsify applies ReLU before top-k,
which gives the same features as after it. It subtracts `b_dec` from the input unless `transcode` is set, even with a
skip connection. A transcoder's `b_dec` is another activation than its input, so there the reader uses
`b_enc - b_dec @ W_enc` as `b_enc` instead.

The SAEs of its first releases may be `signed`: they keep the k preactivations with the largest absolute values, without
a ReLU, which is an abstopk SAE.

The `hook_name` of a folder `layers.<n>` is the output of that layer; that of other folders is empty.

Source: sparsify 1.3.3, `sparsify/sparse_coder.py`, `fused_encoder.py`, `config.py`; for `signed` sae 0.1,
`Sae.pre_acts` and `Sae.select_topk`.
"""

import re
from pathlib import Path
from typing import Any

import torch

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype
from ..finding import find
from ..folding import fold, product
from ..options import Options
from ..renaming import rename
from ..request import Request, Source

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"

TITLE = "sparsify"
NAME = f"sparsify, a folder with {CONFIG} and {WEIGHTS}"
ARCHITECTURES = ("topk", "abstopk", "topk_transcoder", "topk_skip_transcoder")

NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
TENSORS = tuple(NAMES)
WITHOUT_EFFECT = ("normalize_decoder", "multi_topk")  # options of the training
UNSUPPORTED = {"groupmax": "it keeps the largest feature of each of k groups, and no architecture of HookedSAE does"}
"""Activation functions that are not read, with the reason."""


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with both files, or one of the files."""
    found = find(path, CONFIG, WEIGHTS)
    return found is not None and (found.named or {"k", "d_in", "num_latents"} <= set(found.config))


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a sparsify folder.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    found = find(path, CONFIG, WEIGHTS)
    assert found is not None
    sae = from_parts(*found.parts(), request)
    if not sae.architecture.endswith("transcoder"):
        sae.cfg.hook_name = _hook_name(found.weights.parent)
    return sae


def from_parts(
    contents: dict[str, Any], stored: dict[str, torch.Tensor], source: Source, request: Request
) -> HookedSAE:
    """Return the HookedSAE of a `SparseCoder`'s config and state dict. Its `hook_name` is empty.

    Raises:
        CheckpointError: An option is unknown, or a tensor does not fit; the message names it.
    """
    options = Options(contents, source.config, request)
    options.choose("activation", ("topk",), "topk", unsupported=UNSUPPORTED)
    signed = options.take("signed", bool, False)
    d_in = options.take("d_in", int)
    expansion = options.take("expansion_factor", int, 0)
    config: dict[str, Any] = {
        "d_in": d_in,
        "hook_name": "",
        "d_sae": options.take("num_latents", int, 0) or d_in * expansion,
        "k": options.take("k", int),
    }
    transcode = options.take("transcode", bool, False)
    skip = options.take("skip_connection", bool, False)
    options.finish(WITHOUT_EFFECT)

    tensors = rename(stored, NAMES | ({"W_skip": "W_skip"} if skip else {}), source.tensors)
    config["dtype"] = choose_dtype(tensors, source.tensors, request)
    architecture = "abstopk" if signed else "topk"
    if transcode or skip:
        if signed:
            raise options.refused("signed", True, "only SAEs of sparsify have negative features, not its transcoders")
        architecture, config["d_out"] = "topk_skip_transcoder" if skip else "topk_transcoder", d_in
    if skip and not transcode and tensors["W_enc"].shape[:1] == tensors["b_dec"].shape:
        tensors["b_enc"] = tensors["b_enc"].double() - product(tensors["b_dec"], tensors["W_enc"])
    return build(architecture, config, fold(tensors, config["dtype"]), source.tensors)


def _hook_name(folder: Path) -> str:
    """Return the TransformerLens name of the activation that a folder is named after; else an empty string."""
    match = re.fullmatch(r"(?:.*\.)?layers\.(\d+)", folder.name)
    return f"blocks.{match[1]}.hook_resid_post" if match else ""

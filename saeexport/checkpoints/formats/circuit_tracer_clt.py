"""circuit-tracer's cross-layer transcoders: `W_enc_<n>.safetensors` and `W_dec_<n>.safetensors` for each layer n.

A feature reads one layer and writes to that layer and all above it. The reader makes a transcoder of one layer, as
SAELens does: the features are right, and the reconstruction is the sum of what they write to all layers.

    acts_post = relu(input @ W_enc_<n>.T + b_enc_<n>)                        W_enc_<n> [d_sae, d_in]
    recons    = acts_post @ W_dec_<n>.sum(1) + b_dec_<n>                     W_dec_<n> [d_sae, layers, d_out]

`threshold_<n>` [d_sae] makes it a JumpReLU transcoder. `config.yaml` names the hooks within a block.

Source: github.com/safety-research/circuit-tracer, `circuit_tracer/transcoder/cross_layer_transcoder.py`; SAELens 6.54,
`mntss_clt_layer_huggingface_loader`.
"""

import re
from pathlib import Path

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors
from ..folding import BLOCK_ELEMENTS
from ..renaming import rename
from ..request import Request
from .circuit_tracer import CONFIG, positive_thresholds, read_hooks

TITLE = "circuit-tracer CLT"
NAME = f"circuit-tracer CLT, W_enc_<n>.safetensors beside W_dec_<n>.safetensors and {CONFIG}, or a folder with index=n"
ARCHITECTURES = ("transcoder", "jumprelu_transcoder")

KIND = "cross_layer_transcoder"
WITHOUT_EFFECT = ("scan", "subfolder", "repo_id", "revision")

NOTE = (
    "This is one layer of a cross-layer transcoder. Its features are right; its reconstruction is the sum of what they "
    "write to this layer and all above it, which is no single activation of the model."
)

_FILE = re.compile(r"W_(?:enc|dec)_(\d+)\.safetensors")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder with the files of layers, or one of the files."""
    if path.is_dir():
        return bool(_layers(path))
    match = _FILE.fullmatch(path.name)
    return match is not None and int(match[1]) in _layers(path.parent)


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a layer, the one of the file or of `request.index`.

    Raises:
        CheckpointError: No layer or a missing one is asked for, a file is damaged, or an option is unknown.
    """
    folder = path if path.is_dir() else path.parent
    match = _FILE.fullmatch(path.name)
    layer = request.take("index") if match is None else int(match[1])
    if layer not in (layers := _layers(folder)):
        given = "No layer is given" if layer is None else f"The layer is {layer}"
        raise CheckpointError(
            f"{given}; {folder} is a cross-layer transcoder of the layers {', '.join(map(str, layers))}. Say which "
            "one: --index N, or in Python index=N."
        )
    source = str(folder / f"W_enc_{layer}.safetensors")
    decoder = folder / f"W_dec_{layer}.safetensors"
    stored = read_tensors(Path(source))
    renamed = ("W_enc", "b_enc", "b_dec", *(("threshold",) if f"threshold_{layer}" in stored else ()))
    tensors = rename(stored, {f"{name}_{layer}": name for name in renamed}, source, transposed=(f"W_enc_{layer}",))
    tensors |= rename(read_tensors(decoder), {f"W_dec_{layer}": "W_dec"}, str(decoder))
    d_in, d_sae = matrix_shape(tensors, "W_enc", source)
    dtype = choose_dtype(tensors, source, request)
    tensors["W_dec"] = _summed(tensors["W_dec"], dtype, str(decoder))
    if "threshold" in tensors:
        tensors["threshold"] = positive_thresholds(tensors["threshold"], d_sae, source)
    config = {
        "d_in": d_in,
        "d_sae": d_sae,
        "d_out": tensors["b_dec"].numel(),
        "dtype": dtype,
        **read_hooks(folder / CONFIG, layer, KIND, WITHOUT_EFFECT, request),
    }
    request.notes.append(NOTE)
    return build("jumprelu_transcoder" if "threshold" in tensors else "transcoder", config, tensors, source)


def _layers(folder: Path) -> list[int]:
    """Return the numbers of the layers that have both files, in order."""
    layers = {int(match[1]) for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))}
    return [
        layer
        for layer in sorted(layers)
        if all((folder / f"W_{which}_{layer}.safetensors").is_file() for which in ("enc", "dec"))
    ]


def _summed(decoders: torch.Tensor, dtype: torch.dtype, source: str) -> torch.Tensor:
    """Return the sum of the decoders to all layers, `[d_sae, d_out]`, computed in float64 in blocks of features.

    Raises:
        CheckpointError: They are not a tensor `[d_sae, layers, d_out]`.
    """
    if decoders.ndim != 3:
        raise CheckpointError(
            f"{source} holds {list(decoders.shape)}; a cross-layer decoder is [d_sae, layers, d_out]."
        )
    total = torch.empty(decoders.shape[0], decoders.shape[2], dtype=dtype)
    rows = max(1, BLOCK_ELEMENTS // max(1, decoders[0].numel()))
    for start in range(0, len(total), rows):
        total[start : start + rows] = decoders[start : start + rows].double().sum(1).to(dtype)
    return total

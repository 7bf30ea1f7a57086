"""circuit-tracer: `layer_<n>.safetensors`, the transcoder of one layer, in a folder with `config.yaml`.

    acts_post = relu(input @ W_enc.T + b_enc)                                W_enc [d_sae, d_in]
    recons    = acts_post @ W_dec + b_dec [+ input @ W_skip.T]               W_dec [d_sae, d_out], W_skip [d_out, d_in]

The first releases of circuit-tracer stored `W_dec` as `[d_out, d_sae]`; the lengths of the biases tell which it is.
`activation_function.threshold` [d_sae], or a single number, makes it a JumpReLU transcoder.

`config.yaml` names the hooks within a block, such as `mlp.hook_in`. It may be missing. `wandb-config.yaml`, the config
of the training, names the activation function, which must be ReLU if there are no thresholds.

Source: github.com/safety-research/circuit-tracer, `circuit_tracer/transcoder/single_layer_transcoder.py`
(`SingleLayerTranscoder`, `load_relu_transcoder`); SAELens 6.54, `mwhanna_transcoder_huggingface_loader`.
"""

import re
from pathlib import Path
from typing import Any

import torch

from runtime.errors import CheckpointError

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors, read_yaml
from ..finding import tensor_shapes
from ..options import Options
from ..renaming import SAME, rename
from ..request import Request

CONFIG = "config.yaml"

TITLE = "circuit-tracer"
NAME = f"circuit-tracer, layer_<n>.safetensors of a transcoder, with {CONFIG} beside it"
ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")

BESIDE = ("wandb-config.yaml", "wanb-config.yaml")
"""Names of the config of the training; some repositories have the second one."""

KIND = "transcoder_set"
THRESHOLD = "activation_function.threshold"
TENSORS = tuple(SAME)
OPTIONAL = {"W_skip": "W_skip", THRESHOLD: "threshold"}

WITHOUT_EFFECT = ("scan", "transcoders", "subfolder", "repo_id", "revision")
"""Keys that say where the other transcoders and the descriptions of features are."""

_FILE = re.compile(r"layer_(\d+)\.safetensors")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file of this name with `W_enc` as `[d_sae, d_in]` and `b_enc` as `[d_sae]`."""
    if _FILE.fullmatch(path.name) is None or not path.is_file():
        return False
    shapes = tensor_shapes(path)
    return set(SAME) <= set(shapes) and len(shapes["W_enc"]) == 2 and shapes["W_enc"][:1] == shapes["b_enc"]


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a layer.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    source = str(path)
    stored = read_tensors(path)
    names = SAME | {name: renamed for name, renamed in OPTIONAL.items() if name in stored}
    tensors = rename(stored, names, source, transposed=("W_enc",))
    d_sae, d_out = tensors["b_enc"].numel(), tensors["b_dec"].numel()
    tensors["W_dec"] = _oriented(tensors["W_dec"], d_sae, d_out, source)
    if "threshold" in tensors:
        tensors["threshold"] = positive_thresholds(tensors["threshold"], d_sae, source)
    else:
        _check_activation(path.parent, request)

    layer = _FILE.fullmatch(path.name)
    assert layer is not None
    config = {
        "d_in": matrix_shape(tensors, "W_enc", source)[0],
        "d_sae": d_sae,
        "d_out": d_out,
        "dtype": choose_dtype(tensors, source, request),
        **read_hooks(path.with_name(CONFIG), int(layer[1]), KIND, WITHOUT_EFFECT, request),
    }
    skip = "skip_" if "W_skip" in tensors else ""
    return build(f"{'jumprelu_' if 'threshold' in tensors else ''}{skip}transcoder", config, tensors, source)


def read_hooks(path: Path, layer: int, kind: str, without_effect: tuple[str, ...], request: Request) -> dict[str, Any]:
    """Return the options of a HookedSAE that a `config.yaml` of circuit-tracer gives; empty names if it is missing.

    Args:
        path: Path of the `config.yaml`.
        layer: Number of the layer.
        kind: The only `model_kind` that the caller reads.
        without_effect: Keys that may be ignored.
        request: What the caller says about the checkpoint.

    Raises:
        CheckpointError: The file is damaged, is of another kind, or has an unknown key.
    """
    if not path.is_file():
        return {"hook_name": "", "hook_name_out": ""}
    options = Options(read_yaml(path), str(path), request)
    options.choose("model_kind", (kind,), kind)
    hooks = {key: options.take(f"feature_{key}_hook", str, "") for key in ("input", "output")}
    model_name = options.take("model_name", str, None)
    options.finish(without_effect)
    return {
        "hook_name": f"blocks.{layer}.{hooks['input']}" if hooks["input"] else "",
        "hook_name_out": f"blocks.{layer}.{hooks['output']}" if hooks["output"] else "",
        "model_name": model_name,
    }


def positive_thresholds(threshold: torch.Tensor, d_sae: int, source: str) -> torch.Tensor:
    """Return one threshold per feature, from as many or a single one.

    Below a negative threshold circuit-tracer lets negative preactivations pass, which no JumpReLU of HookedSAE does.

    Raises:
        CheckpointError: A threshold is negative.
    """
    if bool((threshold < 0).any()):
        raise CheckpointError(
            f"{source} has negative thresholds, with which features have negative activations. Only thresholds of zero "
            "and above are supported."
        )
    return threshold.reshape(1).expand(d_sae) if threshold.numel() == 1 else threshold


def _check_activation(folder: Path, request: Request) -> None:
    """Refuse a transcoder that was trained with another activation function than ReLU.

    Raises:
        CheckpointError: The config of the training names another one.
    """
    for name in BESIDE:
        if (folder / name).is_file():
            entry = read_yaml(folder / name).get("act_fn")
            Options(entry if isinstance(entry, dict) else {}, f"act_fn of {folder / name}", request).choose(
                "value", ("relu",), "relu"
            )


def _oriented(matrix: torch.Tensor, d_sae: int, d_out: int, source: str) -> torch.Tensor:
    """Return a decoder as `[d_sae, d_out]`, whichever way it is stored.

    Raises:
        CheckpointError: Its shape does not tell, because the transcoder has as many features as outputs.
    """
    if d_sae == d_out:
        raise CheckpointError(
            f"{source} has as many features as outputs, {d_sae}, so that the orientation of W_dec cannot be told. Save "
            "it as a HookedSAE state dict."
        )
    return matrix.T if tuple(matrix.shape) == (d_out, d_sae) else matrix

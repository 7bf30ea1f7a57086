"""A HookedSAE's `state_dict()` in a `.safetensors` or `.pt` file, its config in a JSON file beside it.

The config of `folder/my-sae.pt` is `folder/my-sae.json`, `folder/my-sae_cfg.json` or `folder/cfg.json`, whichever is
there first. Its keys are HookedSAEConfig's; `dtype` is a string such as "float32" and may be left out, as may all keys
that have a default. `device` is where the SAE was, and is ignored.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from runtime.errors import CheckpointError

from ..hooked_sae import HookedSAE, HookedSAEConfig
from .build import build

NAME = (
    "a HookedSAE state dict, .safetensors or .pt, with its config beside it as <name>.json, <name>_cfg.json or cfg.json"
)


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file that may hold a state dict."""
    return path.is_file() and path.suffix in (".safetensors", ".pt")


def read(path: Path) -> HookedSAE:
    """Return the HookedSAE of a state dict; nothing but tensors is ever unpickled.

    Raises:
        CheckpointError: there is no config, or either file is not sound; the message says what.
    """
    config = _read_config(path)
    tensors = _read_tensors(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensor.")
    stored = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    if len(stored) != 1:
        raise CheckpointError(f"{path} mixes the dtypes {', '.join(sorted(stored))}. Convert it to one of them.")
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds {', '.join(stored)}; weights are floating-point numbers.")
    _check_types(config, path)
    config.pop("device", None)
    dtype = config.pop("dtype", *stored)
    if str(dtype).removeprefix("torch.") not in stored:
        raise CheckpointError(f"{path} holds {', '.join(stored)}, its config says {dtype}. Convert one of them.")
    try:
        cfg = HookedSAEConfig.from_dict({**config, "dtype": getattr(torch, stored.pop())})
    except ValueError as error:
        raise CheckpointError(f"The config of {path} does not fit: {error}") from None
    return build(cfg, tensors, str(path))


TYPES: dict[str, type | tuple[type, ...]] = {
    "d_sae": int,
    "d_in": int,
    "hook_name": str,
    "use_error_term": bool,
    "seed": (int, type(None)),
    "dtype": str,
}


def _check_types(config: dict[str, Any], path: Path) -> None:
    for key, expected in TYPES.items():
        value = config.get(key)
        if key in config and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
            raise CheckpointError(f"The config of {path} does not fit: {key} is {value!r}.")


def _read_config(path: Path) -> dict[str, Any]:
    candidates = [path.with_suffix(".json"), path.with_name(f"{path.stem}_cfg.json"), path.with_name("cfg.json")]
    for candidate in candidates:
        if candidate.is_file():
            try:
                config = json.loads(candidate.read_text("utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{candidate} is not JSON: {error}.") from None
            if not isinstance(config, dict):
                raise CheckpointError(f"{candidate} is not a JSON object.")
            return config
    raise CheckpointError(f"{path} has no config beside it; looked for {', '.join(c.name for c in candidates)}.")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, not a state dict: names with tensors.")
    return tensors

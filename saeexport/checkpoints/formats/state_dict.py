"""State dicts of a HookedSAE in a `.safetensors` or `.pt` file, with the config in a JSON file beside it.

The config of `folder/my-sae.pt` is the first that exists of `folder/my-sae.json`, `folder/my-sae_cfg.json` and
`folder/cfg.json`. Its keys are those of the architecture's config, plus `architecture`. `dtype`, a string such as
"float32", may be left out, as may all keys with a default. `device` is ignored.
"""

from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError

from ...original import architectures
from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import only_dtype, read_json, read_tensors
from ..request import Request

TITLE = "HookedSAE state dict"
NAME = (
    "a HookedSAE state dict, .safetensors or .pt, with its config beside it as <name>.json, <name>_cfg.json or cfg.json"
)
ARCHITECTURES = tuple(architectures.ARCHITECTURES)
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file that may hold a state dict, with a config beside it."""
    named = path.suffix in (".safetensors", ".pt") and path.is_file()
    return named and any(candidate.is_file() for candidate in _configs(path))


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a state dict. Only tensors are unpickled.

    Raises:
        CheckpointError: The config is missing or does not fit, or a file is damaged.
    """
    config = _read_config(path)
    tensors = read_tensors(path)
    dtype = only_dtype(tensors, path)
    _check_types(config, path)
    config.pop("device", None)
    stored = str(dtype).removeprefix("torch.")
    said = config.pop("dtype", stored)
    if said.removeprefix("torch.") != stored:
        raise CheckpointError(f"{path} holds {stored}, but its config says {said}. Convert one of them.")
    architecture = config.pop("architecture", HookedSAE.architecture)
    return build(architecture, {**config, "dtype": dtype}, tensors, str(path))


TYPES: dict[str, type | tuple[type, ...]] = {
    "d_sae": int,
    "d_in": int,
    "hook_name": str,
    "model_name": (str, type(None)),
    "neuronpedia_id": (str, type(None)),
    "use_error_term": bool,
    "seed": (int, type(None)),
    "dtype": str,
    "architecture": str,
    "apply_b_dec_to_input": bool,
    "normalize_activations": str,
    "k": int,
    "d_out": int,
    "hook_name_out": str,
}


def _check_types(config: dict[str, Any], path: Path) -> None:
    for key, expected in TYPES.items():
        value = config.get(key)
        if key in config and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
            raise CheckpointError(f"The config of {path} does not fit: {key} is {value!r}.")


def _read_config(path: Path) -> dict[str, Any]:
    return read_json(next(candidate for candidate in _configs(path) if candidate.is_file()))


def _configs(path: Path) -> list[Path]:
    """Return the paths that the config of a state dict may have."""
    return [path.with_suffix(".json"), path.with_name(f"{path.stem}_cfg.json"), path.with_name("cfg.json")]

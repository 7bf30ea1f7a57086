"""State dicts of a HookedSAE in a `.safetensors` or `.pt` file, with the config in a JSON file beside it.

The config of `folder/my-sae.pt` is in the file itself, or the first that exists of `folder/my-sae.json`,
`folder/my-sae_cfg.json` and `folder/cfg.json`; that of `model.safetensors` may be `config.json`. Its keys are those of
the architecture's config, plus `architecture`. `dtype`, a string such as "float32", may be left out, as may all keys
with a default. `device` is ignored.
"""

from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError

from ...original import architectures
from ...original.hooked_sae import HookedSAE
from ..build import build
from ..containers import is_stored, without_index
from ..files import choose_dtype, dtype_names, read_json, read_tensors
from ..finding import HUB_CONFIGS, HUB_WEIGHTS, Found, find
from ..request import Request

TITLE = "HookedSAE state dict"
NAME = (
    "a HookedSAE state dict, .safetensors or .pt, with its config beside it as <name>.json, <name>_cfg.json or cfg.json"
)
ARCHITECTURES = tuple(architectures.ARCHITECTURES)
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file of tensors with a config."""
    if (found := _find(path)) is not None:
        return {"d_in", "d_sae"} <= set(found.config)
    path = without_index(path)
    if not is_stored(path) or path.suffix not in (".safetensors", ".pt"):
        return False
    return any(place.is_file() for place in _configs(path))


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a state dict. Only tensors are unpickled.

    Raises:
        CheckpointError: The config is missing or does not fit, or a file is damaged.
    """
    found = _find(path)
    path = without_index(path) if found is None else found.weights
    config = _read_config(path) if found is None else dict(found.config)
    tensors = read_tensors(path)
    dtype = choose_dtype(tensors, path, request)
    _check_types(config, path)
    config.pop("device", None)
    stored = dtype_names(tensors)
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


def _find(path: Path) -> Found | None:
    """Return the config and the place of the tensors, if they are in a container of any library."""
    return find(path, HUB_CONFIGS[0], HUB_WEIGHTS)


def _read_config(path: Path) -> dict[str, Any]:
    return read_json(next(candidate for candidate in _configs(path) if candidate.is_file()))


def _configs(path: Path) -> list[Path]:
    """Return the paths that the config of a state dict may have."""
    return [path.with_suffix(".json"), path.with_name(f"{path.stem}_cfg.json"), path.with_name("cfg.json")]

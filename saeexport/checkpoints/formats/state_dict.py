"""State dicts of a HookedSAE in a `.safetensors` or `.pt` file, with the config in a JSON file beside it.

The config of `folder/my-sae.pt` is in the file itself, or the first that exists of `folder/my-sae.json`,
`folder/my-sae_cfg.json` and `folder/cfg.json`; that of `model.safetensors` may be `config.json`. Its keys are those of
the architecture's config, plus `architecture`. `dtype`, a string such as "float32", may be left out, as may all keys
with a default. `device` is ignored.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.errors import CheckpointError

from ...original import architectures
from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import HUB_CONFIGS, HUB_WEIGHTS, Found, find, only_dtype, read_json, read_tensors
from ..request import Request

TITLE = "HookedSAE state dict"
NAME = (
    "a HookedSAE state dict, .safetensors or .pt, with its config beside it as <name>.json, <name>_cfg.json or cfg.json"
)
ARCHITECTURES = tuple(architectures.ARCHITECTURES)

TENSORS = [
    set(kind.parameter_shapes(SimpleNamespace(d_in=1, d_sae=1, d_out=1)))
    for kind in architectures.ARCHITECTURES.values()
]


def recognises(path: Path) -> bool:
    """Tell whether `path` is a file of tensors with a config, or with the parameters of a HookedSAE."""
    if (found := _find(path)) is not None:
        return {"d_in", "d_sae"} <= set(found.config)
    if not path.is_file() or path.suffix not in (".safetensors", ".pt"):
        return False
    return any(place.is_file() for place in _configs(path)) or _fits(path)


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a state dict. Only tensors are unpickled.

    Raises:
        CheckpointError: The config is missing or does not fit, or a file is damaged.
    """
    found = _find(path)
    config = _read_config(path) if found is None else dict(found.config)
    path = path if found is None else found.weights
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


def _find(path: Path) -> Found | None:
    """Return the config and the place of the tensors, if they are in a container of any library."""
    return find(path, HUB_CONFIGS[0], HUB_WEIGHTS)


def _fits(path: Path) -> bool:
    """Tell whether a file holds the parameters of an architecture, in the orientation of HookedSAE."""
    try:
        tensors = read_tensors(path)
    except CheckpointError:
        return False
    if set(tensors) not in TENSORS:
        return False
    biases = [tensors[name] for name in ("b_enc", "b_gate") if name in tensors]
    return all(tensors["W_enc"].shape[1:] == bias.shape for bias in biases)


def _configs(path: Path) -> list[Path]:
    """Return the places of the config of a file, in order."""
    return [path.with_suffix(".json"), path.with_name(f"{path.stem}_cfg.json"), path.with_name("cfg.json")]


def _read_config(path: Path) -> dict[str, Any]:
    candidates = _configs(path)
    for candidate in candidates:
        if candidate.is_file():
            return read_json(candidate)
    raise CheckpointError(f"{path} has no config beside it; expected one of {', '.join(c.name for c in candidates)}.")

"""State dicts of a HookedSAE in a `.safetensors` or `.pt` file, with the config in a JSON file beside it.

The config of `folder/my-sae.pt` is in the file itself, or the first that exists of `folder/my-sae.json`,
`folder/my-sae_cfg.json` and `folder/cfg.json`; that of `model.safetensors` may be `config.json`. Its keys are those of
the architecture's config, plus `architecture`. `dtype`, a string such as "float32", may be left out, as may all keys
with a default. `device` is ignored.
"""

from pathlib import Path
from typing import Any

from ...original import architectures
from ...original.hooked_sae import HookedSAE
from ..build import build
from ..containers import is_stored, without_index
from ..files import choose_dtype, dtype_names, read_json, read_tensors
from ..finding import HUB_CONFIGS, HUB_WEIGHTS, Found, find
from ..options import Options
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
    if found is not None:
        path, config, source = found.weights, found.config, found.config_source
    else:
        config, source = _read_config(without_index(path))
    options = Options(config, source, request)
    settings = {key: options.take(key, kind) for key, kind in TYPES.items() if config.get(key) is not None}
    options.finish(("device",), known=TYPES)

    tensors = read_tensors(path)
    dtype, stored = choose_dtype(tensors, path, request), dtype_names(tensors)
    said = settings.get("dtype", stored)
    if said.removeprefix("torch.") != stored:
        raise options.refused("dtype", said, f"{path.name} holds {stored}. Convert one of them")
    architecture = settings.pop("architecture", HookedSAE.architecture)
    return build(architecture, {**settings, "dtype": dtype}, tensors, str(path))


TYPES: dict[str, type] = {
    "d_sae": int,
    "d_in": int,
    "hook_name": str,
    "model_name": str,
    "neuronpedia_id": str,
    "use_error_term": bool,
    "seed": int,
    "dtype": str,
    "architecture": str,
    "apply_b_dec_to_input": bool,
    "normalize_activations": str,
    "k": int,
    "d_out": int,
    "hook_name_out": str,
}
"""Types of the keys."""


def _find(path: Path) -> Found | None:
    """Return the config and the place of the tensors, if they are in a container of any library."""
    return find(path, HUB_CONFIGS[0], HUB_WEIGHTS)


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the config of a file, and its path."""
    file = next(candidate for candidate in _configs(path) if candidate.is_file())
    return read_json(file), str(file)


def _configs(path: Path) -> list[Path]:
    """Return the paths that the config of a state dict may have."""
    return [path.with_suffix(".json"), path.with_name(f"{path.stem}_cfg.json"), path.with_name("cfg.json")]

"""Takes tensors out of what training scripts and libraries wrap them in, for the readers of all formats.

    shards       `<name>.safetensors.index.json`, whose `weight_map` names the file of each tensor
    state dict   a `.pt` with `state_dict` or `model_state_dict`, perhaps `cfg` or `config`, and the state of a training
    prefixes     `module.` of DataParallel, `_orig_mod.` of torch.compile, `_fsdp_wrapped_module.` of FSDP, also nested

`finding.find` looks for the files of a checkpoint, under the names of a format or of huggingface_hub.

Source: huggingface_hub 1.x, `save_torch_state_dict`; PyTorch 2.13, `torch._dynamo.OptimizedModule`,
`torch.nn.DataParallel`, `torch.distributed.fsdp`.
"""

import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from runtime.errors import CheckpointError

INDEX = ".index.json"
"""What the name of an index adds to the name that the tensors would have in a single file."""

STATE_DICTS = ("state_dict", "model_state_dict")
CONFIG_KEYS = ("cfg", "config")

_TRAINING = (
    "optimizer optimizer_state_dict optimizer_states scheduler scheduler_state_dict lr_scheduler lr_schedulers scaler "
    "epoch step global_step iteration loss losses best_loss metrics history callbacks loops rng_state seed "
    "pytorch-lightning_version"
)
"""Names of what a training script stores beside a state dict to continue the training."""

_FIRST = "module"
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module")


class ContainerError(CheckpointError):
    """A file wraps its tensors in a way that is known in part only."""


class Wrapped(NamedTuple):
    """A state dict, with the config that the same file holds.

    Attributes:
        tensors: Values by name: tensors, and whatever else the file holds if it has no state dict of its own.
        config: The config; None if the file does not hold one.
    """

    tensors: dict[str, Any]
    config: dict[str, Any] | None


def unwrap(values: dict[str, Any], source: str | Path) -> Wrapped:
    """Return the state dict and the config of a file that may wrap them; other files are returned as they are.

    Args:
        values: Values of a `.pt` by name.
        source: Path of the file, for error messages.

    Raises:
        ContainerError: The file has names that are not strings, several state dicts or configs, or values beside them
            that are not known to be those of a training.
    """
    found = [name for name in STATE_DICTS if isinstance(values.get(name), dict)]
    if not found:
        return Wrapped(without_prefixes(values, source), None)
    configs = [name for name in CONFIG_KEYS if isinstance(values.get(name), dict)]
    if len(found) > 1 or len(configs) > 1:
        raise ContainerError(
            f"{source} holds {', '.join(found + configs)}; it must hold one state dict and one config."
        )
    unknown = sorted(map(str, set(values) - {*found, *configs} - set(_TRAINING.split())))
    if unknown:
        raise ContainerError(
            f"{source} holds {', '.join(unknown)} beside its {found[0]}, which may change what the SAE computes. Save "
            f"the {found[0]} by itself if they do not."
        )
    return Wrapped(without_prefixes(values[found[0]], source), values[configs[0]] if configs else None)


def without_prefixes(values: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Return `values` without the prefixes that wrappers of modules give to the names of parameters.

    `module.` is removed only if all names begin with it, since a module may have that name.

    Raises:
        ContainerError: A name is not a string, or two names are the same without the prefixes.
    """
    if not all(isinstance(name, str) for name in values):
        raise ContainerError(f"{source} holds a dict, not a state dict of named tensors: its names are not strings.")
    parts = {name: [part for part in name.split(".") if part not in _ANYWHERE] for name in values}
    while parts and all(len(rest) > 1 and rest[0] == _FIRST for rest in parts.values()):
        parts = {name: rest[1:] for name, rest in parts.items()}
    names = {name: ".".join(rest) for name, rest in parts.items()}
    if len(set(names.values())) != len(names):
        raise ContainerError(f"{source} holds a parameter twice, with and without a prefix of {', '.join(_ANYWHERE)}.")
    return {names[name]: value for name, value in values.items()}


def is_stored(path: Path) -> bool:
    """Tell whether a file exists, or an index of its shards."""
    return path.is_file() or index_of(path).is_file()


def index_of(path: Path) -> Path:
    """Return the path of the index of a safetensors file's shards."""
    return path if path.name.endswith(INDEX) else path.with_name(path.name + INDEX)


def without_index(path: Path) -> Path:
    """Return the path that the tensors of an index would have in a single file; other paths as they are."""
    return path.with_name(path.name.removesuffix(INDEX))


def read_index(index: Path) -> dict[Path, list[str]]:
    """Return the files that an index names, with the names of the tensors in each.

    Raises:
        CheckpointError: The index is damaged, or names a file that is not in its folder.
    """
    try:
        tensors = json.loads(index.read_text("utf-8"))["weight_map"]
        files = {str(file) for file in tensors.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of shards: {error!r}.") from None
    if outside := sorted(file for file in files if PurePath(file).name != file or "\\" in file):
        raise CheckpointError(f"{index} names {', '.join(outside)}; shards must lie in its folder.")
    return {index.with_name(file): sorted(name for name in tensors if tensors[name] == file) for file in sorted(files)}


def check_shard(index: Path, shard: Path, expected: Iterable[str], found: Iterable[str]) -> None:
    """Refuse a shard that holds other tensors than the index says.

    Raises:
        CheckpointError: A tensor is missing or unexpected; the message names it.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise CheckpointError(
            f"{shard} lacks the tensors {missing} and has the unknown tensors {extra}, compared with {index.name}; one "
            "of the two is of another checkpoint."
        )

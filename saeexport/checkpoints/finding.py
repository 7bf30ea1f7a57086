"""Finds the config and the tensors of a checkpoint, and looks at them without reading values, to recognise a format."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from runtime.errors import CheckpointError

from .containers import INDEX
from .files import folder_with, read_json, read_tensors
from .pickled import peek
from .request import Source

HUB_WEIGHTS = "model.safetensors"
HUB_CONFIGS = ("config.json", "cfg.json")
"""Names of the files that huggingface_hub's PyTorchModelHubMixin writes for a module of any class."""

PICKLED = (".pt", ".pth")
"""Endings of the files that `torch.save` writes."""


class Found(NamedTuple):
    """A config, and where the tensors are.

    Attributes:
        config: The config.
        config_source: Where the config is from, for error messages.
        weights: Path that `read_tensors` takes.
        named: Whether the files have the names of the format, and not those that any library may write.
    """

    config: dict[str, Any]
    config_source: str
    weights: Path
    named: bool

    def parts(self) -> tuple[dict[str, Any], dict[str, torch.Tensor], Source]:
        """Return the config, the tensors and the names of both, as the `from_parts` of a format takes them.

        Raises:
            CheckpointError: The tensors cannot be read.
        """
        return self.config, read_tensors(self.weights), Source(self.config_source, str(self.weights))


def find(path: Path, config: str, weights: str) -> Found | None:
    """Return the config and the place of the tensors of a checkpoint; None if `path` is not one.

    A checkpoint is a folder with files of these names, or of the names that huggingface_hub gives, or one of the files;
    or a `.pt` that holds a state dict and a config.

    Args:
        path: Folder or file.
        config: Name of the config's file in this format.
        weights: Name of the tensors' file in this format.

    Raises:
        CheckpointError: There are both files, and the config is not a JSON object.
    """
    for config_name, weights_name in ((config, weights), *((name, HUB_WEIGHTS) for name in HUB_CONFIGS)):
        folder = folder_with(path, config_name, weights_name)
        if folder is not None:
            file = folder / config_name
            tensors = path if path.name.endswith(INDEX) else folder / weights_name
            return Found(read_json(file), str(file), tensors, weights_name == weights)
    if path.suffix in PICKLED and path.is_file():
        try:
            stored = peek(path).config
        except CheckpointError:
            return None
        return None if stored is None else Found(stored, f"the config in {path}", path, False)
    return None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a `.safetensors` file, unread; none if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}

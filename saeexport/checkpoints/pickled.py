"""What `torch.save` wrote, looked into or read without running any of it."""

from pathlib import Path
from typing import Any

import torch

from runtime.errors import CheckpointError


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the names and values in a `.pt` or `.pth` file: tensors, views of the file, and plain values.

    Raises:
        CheckpointError: it is not sound, or would run code, or is not names with values.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever the reader makes of a file that is not sound
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not names with values.")
    return values


def holds(path: Path, *names: str) -> bool:
    """Tell whether `path` is a `.pt` or `.pth` file with all these names; one that is not sound has none."""
    if path.suffix not in (".pt", ".pth") or not path.is_file():
        return False
    try:
        return set(names) <= set(read_pickle(path))
    except CheckpointError:
        return False

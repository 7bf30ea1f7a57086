"""Reads files that `torch.save` wrote, without running code from them."""

from pathlib import Path
from typing import Any

import torch

from runtime.errors import CheckpointError

from .archives import check_saved
from .containers import Wrapped, unwrap
from .damage import reading
from .files import as_dense, check_is_file


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dict in a `.pt` or `.pth` file: tensors, which are views of the file, and plain values by name.

    Raises:
        CheckpointError: The file is damaged, holds pickled code, or is not a dict with string keys.
    """
    check_is_file(path)
    with reading(path):
        check_saved(path)
    return as_dense(peek(path).tensors, path)


def peek(path: Path) -> Wrapped:
    """Return the dict in a file, and the config in it, for a look at their names: the checksums are not checked.

    Raises:
        CheckpointError: The file is damaged, holds pickled code, or is not a dict with string keys.
    """
    check_is_file(path)
    with reading(path):
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a dict of named values.")
    return unwrap(values, path)


def holds(path: Path, *names: str) -> bool:
    """Tell whether `path` is a readable `.pt` or `.pth` file that has all these names."""
    if path.suffix not in (".pt", ".pth") or not path.is_file():
        return False
    try:
        return set(names) <= set(peek(path).tensors)
    except CheckpointError:
        return False


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors in a `.pt` or `.pth` file.

    Raises:
        CheckpointError: The file cannot be read.
    """
    return {name for name, value in peek(path).tensors.items() if isinstance(value, torch.Tensor)}

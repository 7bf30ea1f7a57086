"""Reads the files of checkpoints: JSON, and tensors, mapped into memory where the format allows it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from runtime.errors import CheckpointError

from .archives import check_saved, read_npz

MAX_CONFIG_BYTES = 16 << 20
"""Largest config that is read; those of published checkpoints have a few kilobytes."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, which may begin with a byte order mark.

    Raises:
        CheckpointError: The file is missing or too large, is not a JSON object, has a key twice or a number that is
            not finite or does not fit 64 bits.
    """
    try:
        check_is_file(path)
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_CONFIG_BYTES:,} bytes, too many for a config.")
        config = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_without_duplicates,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_parse_float,
        )
        json.dumps(config, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return config


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return values


def _parse_int(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"the integer {digits[:24]} of {len(digits)} characters does not fit 64 bits")
    return int(digits)


def _parse_float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:24]} is not a finite number")
    return value


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.npz` file, on the CPU.

    Tensors are views of the file and read when they are used, except those of a compressed `.npz`. Only tensors are
    unpickled: a `.pt` that holds other objects is refused. The checksums of `.pt` and `.npz` are checked.

    Raises:
        CheckpointError: The file is damaged, or is not a dict of named tensors.
    """
    check_is_file(path)
    try:
        if path.suffix == ".npz":
            tensors: Any = {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            check_saved(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, not a state dict of named tensors.")
    return tensors


def check_is_file(path: Path) -> None:
    """Refuse a pipe or a device, which a read would wait for.

    Raises:
        CheckpointError: `path` exists and is not an ordinary file.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not an ordinary file.")


def only_dtype(tensors: dict[str, torch.Tensor], source: str | Path) -> torch.dtype:
    """Return the floating-point dtype that all tensors share.

    Raises:
        CheckpointError: There are no tensors, or they have several dtypes or one that is not floating-point.
    """
    if not tensors:
        raise CheckpointError(f"{source} holds no tensor.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if len(dtypes) != 1:
        raise CheckpointError(f"{source} mixes the dtypes {names}. Convert it to one of them.")
    (dtype,) = dtypes
    if not dtype.is_floating_point:
        raise CheckpointError(f"{source} holds {names}; weights must be floating-point.")
    return dtype


def matrix_shape(tensors: dict[str, torch.Tensor], name: str, source: str | Path) -> tuple[int, int]:
    """Return the shape of a matrix, for formats whose config does not give it.

    Raises:
        CheckpointError: The tensor is missing, or is not a matrix.
    """
    if name not in tensors:
        raise CheckpointError(f"{source} has no {name}; it holds {', '.join(sorted(tensors)) or 'no tensor'}.")
    shape = tuple(tensors[name].shape)
    if len(shape) != 2:
        raise CheckpointError(f"{name} of {source} has shape {list(shape)}; it must be a matrix.")
    return shape


def folder_with(path: Path, *names: str) -> Path | None:
    """Return `path` if it is a folder with all these files, or its parent if `path` is one of them; None otherwise.

    Symbolic links are not resolved: in the Hugging Face Hub's cache the link, not its target, has the file's name.
    """
    folder = path.parent if path.name in names and path.is_file() else path
    return folder if all((folder / name).is_file() for name in names) else None

"""Reads the files of checkpoints: JSON, and tensors, mapped into memory where the format allows it."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from runtime.errors import CheckpointError

from .damage import is_of_a_reader


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: The file is missing, or is not a JSON object.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return config


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.npz` file, on the CPU.

    Tensors are views of the file and read when they are used, except those of a compressed `.npz`. Only tensors are
    unpickled: a `.pt` that holds other objects is refused.

    Raises:
        CheckpointError: The file is damaged, or is not a dict of named tensors.
    """
    try:
        if path.suffix == ".npz":
            tensors: Any = {name: torch.from_numpy(array) for name, array in _read_npz(path).items()}
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise anything
        if not is_of_a_reader(error):
            raise
        raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, not a state dict of named tensors.")
    return tensors


def _read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a `.npz`; uncompressed members, as `numpy.savez` writes them, are memory-mapped.

    Source: the zip format. A member's local file header has 30 bytes, the last four of which are the lengths of the two
    fields that follow it; the member itself is a `.npy` file.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        if damaged := archive.testzip():  # reads the file once; mapped data is never checked
            raise ValueError(f"{damaged} does not match its checksum")
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                continue
            file.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra_length, 1)
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(file)
            if dtype.hasobject:
                raise ValueError(f"{member.filename} holds Python objects")
            # Copy on write: torch asks for writable arrays, and the file must not be written to.
            arrays[name] = np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C") if shape else \
                np.lib.format.read_array(archive.open(member), allow_pickle=False)  # fmt: skip
    return arrays


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

"""The files that checkpoints consist of: tensors, mapped into memory where the format allows it, and JSON."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from runtime.errors import CheckpointError

TENSOR_FILES = (".safetensors", ".pt", ".npz")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: it is not there, or not a JSON object.
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

    They are views of the file, read when they are used, except those of a compressed `.npz`. Nothing but tensors is
    ever unpickled: a `.pt` that holds anything else is refused.

    Raises:
        CheckpointError: the file is not sound, or holds something else than names with tensors.
    """
    try:
        if path.suffix == ".npz":
            tensors: Any = {name: torch.from_numpy(array) for name, array in _read_npz(path).items()}
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a reader makes of a file that is not sound
        raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, not a state dict: names with tensors.")
    return tensors


def _read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a `.npz`; the stored ones, as `numpy.savez` writes them, mapped and not read.

    Source: a zip archive's local file header, 30 bytes and the lengths of two fields that follow; in each member a
    `.npy` file.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        if spoilt := archive.testzip():  # reads it all once; mapped, nobody would
            raise ValueError(f"{spoilt} is not what its checksum says")
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
            # Copy on write: torch wants arrays that could be written to, and the file must never be.
            arrays[name] = np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C") if shape else \
                np.lib.format.read_array(archive.open(member), allow_pickle=False)  # fmt: skip
    return arrays


def only_dtype(tensors: dict[str, torch.Tensor], source: str | Path) -> torch.dtype:
    """Return the one floating-point dtype that all tensors have.

    Raises:
        CheckpointError: there is no tensor, or they have several dtypes, or one that is not for weights.
    """
    if not tensors:
        raise CheckpointError(f"{source} holds no tensor.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if len(dtypes) != 1:
        raise CheckpointError(f"{source} mixes the dtypes {names}. Convert it to one of them.")
    (dtype,) = dtypes
    if not dtype.is_floating_point:
        raise CheckpointError(f"{source} holds {names}; weights are floating-point numbers.")
    return dtype


def matrix_shape(tensors: dict[str, torch.Tensor], name: str, source: str | Path) -> tuple[int, int]:
    """Return the two dimensions of a tensor, for a format whose config does not say them.

    Raises:
        CheckpointError: it is not there, or not a matrix.
    """
    if name not in tensors:
        raise CheckpointError(f"{source} has no {name}; it holds {', '.join(sorted(tensors)) or 'no tensor'}.")
    shape = tuple(tensors[name].shape)
    if len(shape) != 2:
        raise CheckpointError(f"{name} of {source} has shape {list(shape)}; it must be a matrix.")
    return shape


def folder_with(path: Path, *names: str) -> Path | None:
    """Return the folder that has files of all these names, where `path` is it or one of them; None if there is none.

    Symbolic links are not resolved: in the Hub's cache the name of a file is that of the link.
    """
    folder = path.parent if path.name in names and path.is_file() else path
    return folder if all((folder / name).is_file() for name in names) else None

"""Reads the files of checkpoints: JSON, and tensors, mapped into memory where the format allows it."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from runtime.errors import CheckpointError

from .containers import INDEX, Wrapped, check_shard, index_of, is_stored, read_index, unwrap, without_prefixes

HUB_WEIGHTS = "model.safetensors"
HUB_CONFIGS = ("config.json", "cfg.json")
"""Names of the files that huggingface_hub's PyTorchModelHubMixin writes for a module of any class."""


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


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, which may hold plain values only.

    Raises:
        CheckpointError: The file is missing, or is not a mapping of names to plain values.
    """
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is not YAML: {error}.") from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise CheckpointError(f"{path} is not a mapping of names to values.")
    return config


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file, by its header only; none if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.npz` file, on the CPU, and out of the containers they are in.

    Tensors are views of the file and read when they are used, except those of a compressed `.npz`. Only tensors are
    unpickled: a `.pt` that holds other objects is refused. A safetensors file may be an index of shards, or be missing
    and have one.

    Raises:
        CheckpointError: The file is damaged, or is not a dict of named tensors.
    """
    if path.name.endswith(INDEX) or (not path.is_file() and index_of(path).is_file()):
        return _read_shards(index_of(path))
    return read_wrapped(path).tensors


def read_wrapped(path: Path) -> Wrapped:
    """Return the tensors of a file, as `read_tensors` does, and the config that a `.pt` may hold beside them.

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
        raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
    wrapped = unwrap(tensors, path) if isinstance(tensors, dict) else None
    if wrapped is None or not all(isinstance(value, torch.Tensor) for value in wrapped.tensors.values()):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, not a state dict of named tensors.")
    return wrapped


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all shards that an index names.

    Raises:
        CheckpointError: The index or a shard is damaged, or they do not belong together.
    """
    tensors: dict[str, torch.Tensor] = {}
    for shard, names in read_index(index).items():
        try:
            found = load_file(shard)
        except Exception as error:  # a damaged file can raise anything
            raise CheckpointError(f"{shard} cannot be read as tensors: {error}") from error
        check_shard(index, shard, names, found)
        tensors |= found
    return without_prefixes(tensors, index)


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

    An index of shards stands for its file. Symbolic links are not resolved: in the Hugging Face Hub's cache the link,
    not its target, has the file's name.
    """
    folder = path.parent if path.name.removesuffix(INDEX) in names and path.is_file() else path
    return folder if all(is_stored(folder / name) for name in names) else None


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
            return Found(read_json(file), str(file), folder / weights_name, weights_name == weights)
    if path.suffix in (".pt", ".pth") and path.is_file():
        try:
            stored = read_wrapped(path).config
        except CheckpointError:
            return None
        return None if stored is None else Found(stored, f"the config in {path}", path, False)
    return None

"""Reads the files of checkpoints: JSON, and tensors, mapped into memory where the format allows it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from runtime.errors import CheckpointError

from ..original.dtypes import TORCH_DTYPES
from .archives import check_saved, read_npz
from .containers import INDEX, check_shard, index_of, is_stored, read_index, unwrap, without_prefixes
from .damage import reading
from .request import Request

MAX_CONFIG_BYTES = 16 << 20
"""Largest config that is read; those of published checkpoints have a few kilobytes."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, which may begin with a byte order mark.

    Raises:
        CheckpointError: The file is missing or too large, is not a JSON object, has a key twice or a number that is
            not finite or does not fit 64 bits.
    """
    try:
        config = json.loads(
            _read_text(path),
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


def _read_text(path: Path) -> str:
    """Return the text of a config, without a byte order mark.

    Raises:
        CheckpointError: The file is not an ordinary one, or is too large.
        OSError, UnicodeDecodeError: It cannot be read, or is not UTF-8.
    """
    check_is_file(path)
    with path.open("rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path} has more than {MAX_CONFIG_BYTES:,} bytes, too many for a config.")
    return data.decode("utf-8-sig")


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


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, which may hold plain values only.

    Raises:
        CheckpointError: The file is missing, or is not a mapping of names to plain values.
    """
    try:
        config = yaml.safe_load(_read_text(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is not YAML: {error}.") from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise CheckpointError(f"{path} is not a mapping of names to values.")
    return config


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.npz` file, on the CPU, and out of the containers they are in.

    Tensors are views of the file and read when they are used, except those of a compressed `.npz`. Only tensors are
    unpickled: a `.pt` that holds other objects is refused. The checksums of `.pt` and `.npz` are checked. A safetensors
    file may be an index of shards, or be missing and have one.

    Raises:
        CheckpointError: The file is damaged, or is not a dict of named tensors.
    """
    if path.name.endswith(INDEX) or (not path.exists() and index_of(path).is_file()):
        return _read_shards(index_of(path))
    check_is_file(path)
    with reading(path):
        if path.suffix == ".npz":
            tensors: Any = {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            check_saved(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    wrapped = unwrap(tensors, path) if isinstance(tensors, dict) else None
    if wrapped is None or not all(isinstance(value, torch.Tensor) for value in wrapped.tensors.values()):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, not a state dict of named tensors.")
    return as_dense(wrapped.tensors, path)


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all shards that an index names.

    Raises:
        CheckpointError: The index or a shard is damaged, or they do not belong together.
    """
    tensors: dict[str, torch.Tensor] = {}
    for shard, names in read_index(index).items():
        check_is_file(shard)
        with reading(shard):
            found = load_file(shard)
        check_shard(index, shard, names, found)
        tensors |= found
    return without_prefixes(tensors, index)


def as_dense(values: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Return a state dict whose tensors can be read as arrays: a negation or conjugation that is pending is done.

    Raises:
        CheckpointError: A tensor is sparse or nested.
    """
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and (value.is_nested or value.layout != torch.strided):
            raise CheckpointError(f"{source}: {name} is a sparse or nested tensor. Save it dense, with to_dense().")
    return {
        name: value.resolve_neg().resolve_conj() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def check_is_file(path: Path) -> None:
    """Refuse a pipe or a device, which a read would wait for.

    Raises:
        CheckpointError: `path` exists and is not an ordinary file.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not an ordinary file.")


def choose_dtype(
    tensors: dict[str, torch.Tensor],
    source: str | Path,
    request: Request,
    configured: torch.dtype | None = None,
) -> torch.dtype:
    """Return the dtype of the HookedSAE: what the caller says, or that of the config, or that of all tensors.

    Args:
        tensors: The tensors of the checkpoint.
        source: Path of the checkpoint, for error messages.
        request: What the caller says.
        configured: Dtype that the library of the checkpoint converts all tensors to when it loads them.

    Raises:
        CheckpointError: There are no tensors, one is not floating-point, or they have several dtypes and neither the
            caller nor the config says which to use.
    """
    if not tensors:
        raise CheckpointError(f"{source} holds no tensor.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    names = dtype_names(tensors)
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise CheckpointError(f"{source} holds {names}; weights must be floating-point.")
    conversion = 'Export it with --dtype float32, or in Python load it with dtype="float32".'
    dtype = request.dtype_for(configured or (next(iter(dtypes)) if len(dtypes) == 1 else None))
    if dtype is None:
        raise CheckpointError(f"{source} mixes the dtypes {names}. {conversion}")
    if dtype not in TORCH_DTYPES.values():
        raise CheckpointError(f"{source} holds {names}; an SAE may be in {', '.join(TORCH_DTYPES)}. {conversion}")
    return dtype


def dtype_names(tensors: dict[str, torch.Tensor]) -> str:
    """Return the names of the dtypes that tensors have, for error messages and comparisons: "float16, float32"."""
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


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

"""Safetensors files beyond the library: tensors as views of a file, and writing tensors larger than the memory.

Source: the format, 8 bytes of header length (little-endian), a JSON header, the tensors' bytes one after another
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..arrays.dtypes import DTYPES, dtype_name
from ..arrays.tensor import Array
from ..errors import ArtifactError
from .files import open_file

LARGEST_HEADER = 100_000_000
"""Largest size of a header in bytes, as in the library."""

BITS = {
    **{dtype.safetensors: dtype.bits for dtype in DTYPES.values()},
    **{"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of an element by the names of the format's dtypes."""

NUMPY_DTYPES = {dtype.safetensors: dtype.numpy for dtype in DTYPES.values()}

MOST_DIMENSIONS = 32
"""Largest number of dimensions of a tensor: NumPy before version 2 has no more."""


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in a file; `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the place of each tensor in a safetensors file, by name.

    Raises:
        ArtifactError: The file is not a safetensors file.
        IntegrityError: It is missing or not an ordinary file.
    """
    with open_file(path) as file:
        return parse_header(file.map(), path)


def parse_header(content: Array, path: Path) -> dict[str, StoredTensor]:
    """Return the place of each tensor in the content of a safetensors file, by name.

    The rules are those of the library: the tensors fill the file one after another, without gaps and without overlaps,
    and each has as many bytes as its dtype and shape say.

    Args:
        content: Content of the file, an array of bytes.
        path: Path of the file, for the error.

    Raises:
        ArtifactError: The content is not that of a safetensors file.
    """
    size = int.from_bytes(content[:8].tobytes(), "little")
    start = 8 + size
    if content.size < 8 or size > LARGEST_HEADER or start > content.size:
        raise ArtifactError(
            f"{path} is not a safetensors file: its header would have {size:,} bytes in a file of {content.size:,}; at "
            f"most {LARGEST_HEADER:,} are allowed. Copy or export it again."
        )
    try:
        header = json.loads(content[8:start].tobytes().decode(), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        tensors = {name: _stored(name, entry, start) for name, entry in header.items() if name != "__metadata__"}
        end = start
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if tensor.offset != end:
                raise ValueError(f"{name} starts at byte {tensor.offset - start}, and not at {end - start}")
            end += tensor.nbytes
        if end != content.size:
            raise ValueError(f"the tensors end at byte {end}, the file at {content.size}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        text = str(error)[:200]
        raise ArtifactError(
            f"{path} is not a safetensors file: {type(error).__name__}: {text}. Copy or export it again."
        ) from None
    return tensors


def tensors_in(content: Array, path: Path) -> dict[str, Array]:
    """Return the tensors in the content of a safetensors file as views, by name.

    bfloat16 is `ml_dtypes.bfloat16`. Tensors of a dtype that is not in `DTYPES`, such as a mask of booleans, are left
    out.

    Args:
        content: Content of the file, an array of bytes.
        path: Path of the file, for the error.

    Raises:
        ArtifactError: The content is not that of a safetensors file.
    """
    return {
        name: content[tensor.offset : tensor.offset + tensor.nbytes]
        .view(NUMPY_DTYPES[tensor.dtype])
        .reshape(tensor.shape)
        for name, tensor in parse_header(content, path).items()
        if tensor.dtype in NUMPY_DTYPES
    }


def _stored(name: str, entry: dict[str, Any], start: int) -> StoredTensor:
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if any(type(size) is not int or size < 0 for size in (*shape, begin, end)):
        raise ValueError(f"{name} has the shape {shape} and the offsets {begin} to {end}")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (end - begin):
        raise ValueError(f"{name} is {dtype} {shape}, and has {end - begin} bytes")
    if len(shape) > MOST_DIMENSIONS or math.prod(filter(None, shape)) * BITS[dtype] >= 2**63:
        raise ValueError(f"{name} has a shape of {len(shape)} dimensions that no array has")  # an empty one, too
    return StoredTensor(dtype, tuple(shape), start + begin, end - begin)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    return dict(pairs)


class TensorWriter:
    """A safetensors file whose tensors are written a block of rows at a time, in any order."""

    def __init__(self, file: IO[bytes], tensors: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """Write the header.

        Args:
            file: File to write to.
            tensors: Shape and dtype of each tensor, by name; the dtype as `dtype_name` accepts it.
        """
        self._file = file
        header, self._offset, end = {}, {}, 0
        for name, (shape, kind) in tensors.items():
            dtype = DTYPES[dtype_name(kind)]
            begin, end = end, end + math.prod(shape) * dtype.numpy.itemsize
            header[name] = {"dtype": dtype.safetensors, "shape": list(shape), "data_offsets": [begin, end]}
            self._offset[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()  # as the library writes it, byte for byte
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._start = 8 + len(text)
        file.truncate(self._start + end)

    def write(self, name: str, first: int, rows: Array) -> None:
        """Write `rows` as the tensor's rows from `first` on. For bfloat16 they may be uint16 bits."""
        block = np.ascontiguousarray(rows)
        row = block.nbytes // len(block) if len(block) else 0
        self._file.seek(self._start + self._offset[name] + first * row)
        self._file.write(block.reshape(-1).view(np.uint8).data if block.size else b"")

"""Safetensors files beyond the library: the offset of each tensor, and writing tensors larger than the memory.

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
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ArtifactError(f"{path} is not a safetensors file: its header would have {size} bytes.")
        try:
            header = json.loads(file.read(size))
            return {
                name: StoredTensor(
                    entry["dtype"],
                    tuple(entry["shape"]),
                    8 + size + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} is not a safetensors file: {error!r}.") from None


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

"""Reads zip archives of tensors, `.npz` and `.pt`, within bounds, and checks their checksums.

What an archive declares is checked before anything is read or inflated: a member is not larger than its bytes in the
archive unless it is compressed, all members together are at most `MOST_INFLATED` times as large as the file (or
`ALWAYS_ALLOWED` bytes), and an array has as many bytes as its shape needs.

Source: the zip format. A member's local file header has 30 bytes, the last four of which are the lengths of the two
fields that follow it; a member of a `.npz` is a `.npy` file.
"""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MOST_INFLATED = 16
"""Largest size of all members as a multiple of the file's. Trained weights compress by a factor of 1.1 in float32."""

ALWAYS_ALLOWED = 64 << 20
"""Number of bytes that the members may always have, so that small files of zeros can be read."""


def check_archive(path: Path) -> None:
    """Check the declared sizes of a zip archive's members, and then their checksums. This reads the file once.

    Raises:
        ValueError: A size is not plausible, or a member does not match its checksum; the message names the member.
        zipfile.BadZipFile: The file is not a zip archive.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is not compressed but has two sizes")
        total = sum(member.file_size for member in members)
        if total > max(MOST_INFLATED * size, ALWAYS_ALLOWED):
            raise ValueError(
                f"its members have {total:,} bytes, more than {MOST_INFLATED} times the {size:,} bytes of the file; "
                "weights do not compress like that. Unpack and check it, and save it without compression"
            )
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} does not match its checksum; copy the file again")


def check_saved(path: Path) -> None:
    """Check the members of a file that `torch.save` wrote; other files are left to `torch.load`.

    Raises:
        ValueError: As for `check_archive`, or a member is compressed.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed, which torch.save does not do")
    check_archive(path)


def read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a `.npz`; uncompressed members, as `numpy.savez` writes them, are memory-mapped.

    Raises:
        ValueError: A member is damaged, or is not an array of numbers.
        zipfile.BadZipFile: The file is not a zip archive.
    """
    check_archive(path)
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if (name := member.filename.removesuffix(".npy")) in arrays:
                raise ValueError(f"it holds {name} twice")
            with archive.open(member) as stream:
                shape, fortran, dtype = _read_header(stream, member)  # type: ignore[arg-type]
            if member.compress_type != zipfile.ZIP_STORED or not shape:
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                continue
            file.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra_length, 1)
            _read_header(file, member)
            # Copy on write: torch asks for writable arrays, and the file must not be written to.
            arrays[name] = np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")
    return arrays


def _read_header(stream: BinaryIO, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, the order and the dtype of a `.npy`, and leave the stream at its data.

    Raises:
        ValueError: The member does not hold numbers, or its size is not that of its shape.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects")
    needed = math.prod(shape) * dtype.itemsize
    if needed != member.file_size - stream.tell() and isinstance(stream, zipfile.ZipExtFile):
        raise ValueError(
            f"{member.filename} has the shape {list(shape)} of {dtype}, which takes {needed:,} bytes; it has "
            f"{member.file_size - stream.tell():,}"
        )
    return shape, fortran, dtype


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays in a `.npz`, without reading them."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]

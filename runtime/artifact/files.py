"""Opens a file once, checks what it opened, and reads only from there.

A path can lead to another file a moment later: an export replaces an artifact, a download is still writing. So a file
is opened once, and its kind, its size, its sha256 and its content all come from that handle.

Only ordinary files are read. Opening a FIFO would wait for a writer, and a device may have no end. Symbolic links are
followed, because the cache of the Hugging Face Hub consists of them.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np

from ..arrays.tensor import Array
from ..errors import IntegrityError, SAEError
from .manifest import MANIFEST, FileRecord

CHUNK = 1 << 18

FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
"""Opening a FIFO does not wait, a child process does not get the handle, and Windows does not translate line ends."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

Identity: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and time of the last change: what tells one state of one file from every other."""


class OpenedFile:
    """An ordinary file that is open for reading. Threads may share it.

    Every method but `close` raises a SAEError if the file is closed, also if another thread closes it during a read:
    the system gives its descriptor to the next file that is opened.

    Attributes:
        path: Path that was opened.
        size: Size of the file in bytes when it was opened.
        identity: Identity of the file when it was opened.
    """

    def __init__(self, path: Path, descriptor: int, expected: FileRecord | None, manifest: str = MANIFEST) -> None:
        self.path = path
        self._manifest = manifest
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._finalizer.atexit = False
        self._expected = expected
        self.identity = _identity(os.fstat(descriptor))
        self.size = self.identity[2]
        self._lock = threading.Lock()  # the position in the file, and the descriptor, belong to one thread at a time
        self._mapping: mmap.mmap | None = None
        self._is_checked = False

    def read(self, check: bool = False) -> bytes:
        """Return the content of the file.

        Args:
            check: Whether to compare the sha256 of these bytes with the manifest.

        Raises:
            IntegrityError: The file became shorter or longer while it was read, or its sha256 differs.
        """
        content = b"".join(self._chunks())
        if check:
            self._compare(hashlib.sha256(content).hexdigest())
        return content

    def sha256(self) -> str:
        """Return the sha256 of the content.

        Raises:
            IntegrityError: The file became shorter or longer while it was read.
        """
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def check(self) -> None:
        """Compare the sha256 of the content with the manifest, once.

        Raises:
            IntegrityError: It differs, or the file changed while it was read.
        """
        if not self._is_checked:
            self._compare(self.sha256())
            self.check_unchanged()
            self._is_checked = True

    def check_unchanged(self) -> None:
        """Check that nothing was written to the file since it was opened.

        Raises:
            IntegrityError: Something was.
        """
        with self._using() as descriptor:
            identity = _identity(os.fstat(descriptor))
        if identity != self.identity:
            raise IntegrityError(
                f"{self.path} was changed while it was in use. Replace an artifact as a whole (saeexport export "
                "--overwrite does), and never write into its files."
            )

    def map(self) -> Array:
        """Return the content as a read-only array of bytes, mapped into memory and not read.

        Raises:
            IntegrityError: Something was written to the file since it was opened. If the file became shorter, the
                system would end the process where it reads the bytes that are gone.
        """
        self.check_unchanged()
        with self._using() as descriptor:
            if self._mapping is None and self.size:  # an empty file cannot be mapped
                self._mapping = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
            return np.frombuffer(b"" if self._mapping is None else self._mapping, np.uint8)

    def forget_pages(self) -> None:
        """Return the memory of the mapping to the system, which reads the file again where it is needed."""
        with self._using():
            if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
                self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the file. Arrays that `map` returned stay valid."""
        with self._lock:
            self._finalizer()
            self._mapping = None

    def __enter__(self) -> "OpenedFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compare(self, digest: str) -> None:
        if self._expected is not None and digest != self._expected.sha256:
            raise IntegrityError(
                f"{self.path} has sha256 {digest}, {self._manifest} says {self._expected.sha256}: it was changed after "
                "the export. Copy the whole folder again."
            )

    def _chunks(self) -> Iterator[bytes]:
        """Yield the content, and stop after the bytes that the file had when it was opened."""
        position = 0
        while position < self.size:
            chunk = self._read_at(position, min(CHUNK, self.size - position))
            if not chunk:
                raise IntegrityError(f"{self.path} became shorter while it was read. Copy the whole folder again.")
            position += len(chunk)
            yield chunk
        if self._read_at(position, 1):
            raise IntegrityError(f"{self.path} became longer while it was read. Wait until it is complete.")

    def _read_at(self, position: int, size: int) -> bytes:
        with self._using() as descriptor:
            os.lseek(descriptor, position, os.SEEK_SET)
            return os.read(descriptor, size)

    @contextlib.contextmanager
    def _using(self) -> Iterator[int]:
        """Yield the descriptor, which no other thread uses or closes meanwhile.

        Raises:
            SAEError: The file is closed.
        """
        with self._lock:
            if not self._finalizer.alive:
                raise SAEError(f"{self.path} is closed. Open the artifact again.")
            yield self._descriptor


def open_file(path: Path, expected: FileRecord | None = None, manifest: str = MANIFEST) -> OpenedFile:
    """Open an ordinary file, or a symbolic link to one.

    Args:
        path: Path of the file.
        expected: Size and sha256 in the manifest. The size is compared now, the sha256 by `OpenedFile.check`.
        manifest: Name of the manifest's file, for the messages.

    Raises:
        IntegrityError: The file is missing, cannot be read, is not an ordinary file, or has another size.
    """
    try:
        descriptor = os.open(path, FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise IntegrityError(f"{path} is missing. Copy the whole folder again.") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        loop = isinstance(error, OSError) and error.errno == errno.ELOOP
        reason = "its symbolic links lead in a circle" if loop else str(error)
        raise IntegrityError(f"{path} cannot be opened: {reason}. Check its permissions, or copy the folder again.") \
            from None  # fmt: skip
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise IntegrityError(
                f"{path} is {kind}; an artifact consists of ordinary files. Copy the whole folder again."
            )
        if expected is not None and status.st_size != expected.bytes:
            raise IntegrityError(
                f"{path} has {status.st_size} bytes, {manifest} says {expected.bytes}: it is truncated or from another "
                f"export. Copy the whole folder again."
            )
        return OpenedFile(path, descriptor, expected, manifest)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def identify(path: Path) -> Identity | None:
    """Return the identity of the file that a path leads to now; None if it leads to none."""
    try:
        return _identity(os.stat(path))
    except OSError:
        return None


def hash_file(path: Path) -> FileRecord:
    """Return the size in bytes and the sha256 of a file.

    Raises:
        IntegrityError: It is not an ordinary file, or changed while it was read.
    """
    with open_file(path) as file:
        return FileRecord(file.sha256(), file.size)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

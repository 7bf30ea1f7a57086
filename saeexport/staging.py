"""Writes an artifact beside its path and moves it there in one step, so that it appears whole or not at all.

A staging folder is called `.NAME.HEX` and is locked (`flock`) for as long as its process lives. Where the system can
exchange two folders in one step, replacing an artifact does so, and there is a whole artifact at the path at every
moment. Elsewhere the old one is called `.NAME.HEX.replaced` for an instant. The next export to the same path finds what
a killed process left: it moves a replaced artifact back if nothing is at the path, and removes the rest.

Source: Linux, renameat2(2), `RENAME_EXCHANGE`.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import MANIFEST
from runtime.artifact.signature import SIGNATURE
from runtime.errors import ArtifactError, ExportError

try:
    import fcntl
except ImportError:  # Windows: nothing can be told about other processes, so what they left stays
    fcntl = None  # type: ignore[assignment]

REPLACED = ".replaced"
RENAME_EXCHANGE = 2
AT_FDCWD = -100
CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists, unless it is an artifact to be overwritten and its folder holds nothing else.

    Raises:
        ExportError: The path is refused; the message says what to do.
    """
    if path.is_symlink():
        raise ExportError(f"{path} is a symbolic link. Pass the folder that it points to, or another path.")
    if not path.exists():
        return
    if not overwrite:
        raise ExportError(f"{path} exists. Choose another path, or overwrite it (overwrite=True, --overwrite).")
    if path.is_dir() and not any(path.iterdir()):
        return
    try:
        artifact = read_artifact(path)
    except ArtifactError as error:
        raise ExportError(
            f"{path} exists and will not be overwritten, because it may not be an artifact: {error}"
        ) from None
    strangers = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, SIGNATURE, *artifact.manifest.files})
    if strangers:
        raise ExportError(
            f"{path} exists and will not be overwritten, because it holds files that are not part of its artifact: "
            f"{', '.join(strangers)}. Move them elsewhere first."
        )


@contextlib.contextmanager
def staged_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `path`, and move it to `path` when the block ends without an exception.

    On any exception, Ctrl-C included, the new folder is removed, and so are parents that were made for it; an artifact
    at `path` stays. The files are on the disk before the folder is moved.

    Raises:
        ExportError: Something has appeared at `path` that may not be replaced.
        OSError: The folder cannot be made or moved.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    staging: Path | None = None
    with contextlib.ExitStack() as locks:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            recover(path)
            while staging is None or not staging.exists():
                staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
                staging.mkdir()
                _lock(staging, locks, wait=True)  # another export may think that it is abandoned, and remove it first
            yield staging
            for file in staging.iterdir():
                file.chmod(staging.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
                _flush(file)
            _flush_entries(staging)
            check_output_folder(path, overwrite)
            _move(staging, path, locks)
            _flush_entries(path.parent)
        except BaseException:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise


def recover(path: Path) -> None:
    """Put back an artifact that a killed process had moved away from `path`, and remove what such processes left."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}({re.escape(REPLACED)})?")
    left = sorted(entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name) and entry.is_dir())
    for folder in left:
        with contextlib.ExitStack() as locks:
            if not _lock(folder, locks):
                continue
            if folder.name.endswith(REPLACED) and not path.exists():
                folder.rename(path)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step. Return whether the system can do that; if not, nothing has changed.

    Raises:
        OSError: The system can, and refuses.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:  # not Linux, or a C library before glibc 2.28
        return False
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT_EXCHANGE:  # the file system
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))


def _move(staging: Path, path: Path, locks: contextlib.ExitStack) -> None:
    if not path.exists():
        staging.rename(path)
        return
    if exchange(staging, path):
        shutil.rmtree(staging, ignore_errors=True)
        return
    replaced = staging.with_name(f"{staging.name}{REPLACED}")
    _lock(path, locks)
    path.rename(replaced)
    try:
        staging.rename(path)
    except BaseException:
        if not path.exists():
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _lock(folder: Path, locks: contextlib.ExitStack, wait: bool = False) -> bool:
    """Lock a folder until `locks` is closed or the process ends, and return whether this process holds the lock.

    Args:
        folder: Folder to lock.
        locks: Stack that holds the lock.
        wait: Whether to wait for another process that has locked the folder in order to remove it.
    """
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # its process has just removed it, or it is another user's
        return False
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # it is locked, or the file system has no locks
        return False
    return True


def _flush(path: Path) -> None:
    """Write a file or a folder's entries to the disk, so that a power failure cannot leave an empty one."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows only flushes what can be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_entries(folder: Path) -> None:
    """Write a folder's entries to the disk, if the system can: Windows and some file systems refuse it."""
    with contextlib.suppress(OSError):
        _flush(folder)

"""Writes files so that they appear whole or not at all, and removes what killed processes left.

A file is written under another name beside its path, `.NAME.HEX.saeexport-partial`, and takes its own name when it is
on the disk. Its writer holds a lock (`flock`) on it. Every write removes the partial files in its folder whose lock is
free, because their writers are dead.

On some network file systems a machine does not see the locks of another. There, nothing is removed: a partial file
stays until somebody deletes it. The same holds on Windows, which has no `flock`.

Source: Linux, flock(2), renameat2(2).
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
from typing import IO

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".saeexport-partial"
PARTIAL_NAME = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(PARTIAL)}", re.DOTALL)

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)

ONE_MACHINE = frozenset(
    ("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "ntfs3", "overlay", "ramfs",
     "reiserfs", "tmpfs", "vfat", "xfs", "zfs")
)  # fmt: skip
"""File systems that a single machine mounts at a time, so that it knows every lock."""


@contextlib.contextmanager
def replaced_file(path: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when the block succeeds, and is removed when it fails.

    When the block ends, the file is on the disk. It has the permissions of the file that it replaces. If `path` is a
    symbolic link, the file that it points to is replaced.

    Raises:
        InputError: At the start or at the end, `path` is not an ordinary file, or exists and `overwrite` is False, or
            its folder does not exist.
        OSError: The file cannot be written.
    """
    path = Path(os.path.realpath(path))
    check_output_file(path, overwrite)
    remove_abandoned(path.parent)
    partial: Path | None = None
    with contextlib.ExitStack() as locks:
        try:
            while partial is None or not partial.exists():
                partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
                partial.touch(exist_ok=False)
                lock(partial, locks, wait=True)  # another writer may think that it is abandoned, and remove it first
            with partial.open("r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            check_output_file(path, overwrite)
            if path.exists():
                shutil.copymode(path, partial)
            _move(partial, path, overwrite)
            flush_entries(path.parent)
        except BaseException:
            if partial is not None:
                partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, in place of one that exists, as `replaced_file` does.

    Raises:
        InputError: `path` is not an ordinary file, or its folder does not exist.
        OSError: The file cannot be written.
    """
    with replaced_file(path, overwrite=True) as file:
        file.write(text.encode())


def check_output_file(path: Path, overwrite: bool) -> None:
    """Check that `path` can be written.

    Raises:
        InputError: Its folder does not exist, it is not an ordinary file, or it exists and `overwrite` is False.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder. Make it first, or choose another path.")
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a link that was resolved points to itself
        raise InputError(f"{path} is not an ordinary file. Choose another path.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists. Choose another file, or overwrite it (overwrite=True, --overwrite).")


def remove_abandoned(folder: Path) -> None:
    """Remove the partial files in a folder whose writers are dead."""
    try:
        with os.scandir(folder) as entries:
            left = [entry.path for entry in entries
                    if PARTIAL_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]  # fmt: skip
    except OSError:  # the folder is missing, or may not be listed
        return
    for path in map(Path, left):
        with contextlib.ExitStack() as locks, contextlib.suppress(OSError):
            if lock(path, locks):
                path.unlink()


def lock(path: Path, locks: contextlib.ExitStack, wait: bool = False) -> bool | None:
    """Lock a file or a folder until `locks` is closed or the process ends.

    Args:
        path: An ordinary file or a folder.
        locks: Stack that holds the lock.
        wait: Whether to wait for another process that has locked it in order to remove it.

    Returns:
        True if this process holds the lock, and no other process can. False if another process holds it. None if that
        is not known: the path cannot be opened, or the file system has no locks, or has them for one machine only.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS only locks what can be written
    except OSError:  # its writer has just removed it, or it is another user's
        return None
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True if _every_machine_sees_locks(descriptor) else None


def rename(source: Path, target: Path, flag: int) -> bool:
    """Rename a file or a folder with a flag of renameat2: `RENAME_NOREPLACE` or `RENAME_EXCHANGE`.

    Returns:
        Whether the system has the flag; if not, nothing has changed.

    Raises:
        OSError: The system has the flag, and refuses the names.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:  # not Linux, or a C library before glibc 2.28
        return False
    if renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:  # the file system
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def flush(path: Path) -> None:
    """Write a file or a folder's entries to the disk, so that a power failure cannot leave an empty one."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows only flushes what can be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_entries(folder: Path) -> None:
    """Write a folder's entries to the disk, if the system can: Windows and some file systems refuse it."""
    with contextlib.suppress(OSError):
        flush(folder)


def _move(partial: Path, path: Path, overwrite: bool) -> None:
    """Give a complete file its name. Without `overwrite`, a file that has just appeared there is kept."""
    if not overwrite:
        try:
            if rename(partial, path, RENAME_NOREPLACE):
                return
        except FileExistsError:
            check_output_file(path, overwrite)
            raise
    os.replace(partial, path)


def _every_machine_sees_locks(descriptor: int) -> bool:
    """Tell whether every process that can open a file sees its locks, also on other machines.

    Outside Linux the system does not say; there it is assumed.

    Source: Linux, proc_pid_fdinfo(5), `mnt_id`; proc_pid_mountinfo(5); nfs(5), `local_lock`.
    """
    try:
        found = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE)
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return True
    mount = next((line for line in mounts if found and line.split(" ", 1)[0] == found[1]), "")
    kind, _, options = [*mount.partition(" - ")[2].split(" "), "", "", ""][:3]
    return kind in ONE_MACHINE or (kind in ("nfs", "nfs4") and "local_lock=none" in options.split(","))

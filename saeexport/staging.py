"""Writes an artifact beside its path and moves it there in one step, so that it appears whole or not at all.

A staging folder is called `.NAME.HEX` and is locked (`flock`) for as long as its process lives. Where the system can
exchange two folders in one step, replacing an artifact does so, and there is a whole artifact at the path at every
moment. Elsewhere the old one is called `.NAME.HEX.replaced` for an instant. The next export to the same path finds what
a killed process left: it moves a replaced artifact back if nothing is at the path, and removes the rest.

Source: Linux, renameat2(2), `RENAME_EXCHANGE`.
"""

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import MANIFEST
from runtime.artifact.signature import SIGNATURE
from runtime.artifact.writing import RENAME_EXCHANGE, flush, flush_entries, lock, remove_abandoned, rename
from runtime.errors import ArtifactError, ExportError, ManifestError
from runtime.hosts.folder import is_host, read_host
from runtime.hosts.manifest import MANIFEST as HOST_MANIFEST
from runtime.hosts.names import DATA, TOKENIZER

REPLACED = ".replaced"
NAMES = (MANIFEST, HOST_MANIFEST, SIGNATURE, DATA, TOKENIZER)
SUFFIXES = (".onnx", ".safetensors")
"""Names, and endings of the other names, of the files of an artifact or a grafted host."""


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists, unless it may be overwritten and holds one artifact or grafted host and nothing else.

    Raises:
        ExportError: The path is refused; the message says what to do.
    """
    if path.is_symlink():
        raise ExportError(f"{path} is a symbolic link. Pass the folder that it points to, or another path.")
    if not path.exists():
        return
    if not overwrite:
        raise ExportError(f"{path} exists. Choose another path, or overwrite it (overwrite=True, --overwrite).")
    if path.is_dir():
        remove_abandoned(path)  # of a signing that was killed
        if not any(path.iterdir()):
            return
    try:
        own = _own_files(path)
    except ManifestError:  # damaged, or of another version of the format: the names alone tell
        own = {file for file in _files(path) if Path(file).name in NAMES or Path(file).suffix in SUFFIXES}
    except ArtifactError as error:
        raise ExportError(
            f"{path} exists and will not be overwritten, because it may not be an artifact: {error}"
        ) from None
    strangers = sorted(_files(path) - own)
    if strangers:
        raise ExportError(
            f"{path} exists and will not be overwritten, because it holds files that are not part of its artifact: "
            f"{', '.join(strangers)}. Move them elsewhere first."
        )


def _own_files(path: Path) -> set[str]:
    """Return the files of the artifact or the grafted host in a folder, relative to it."""
    if not is_host(path):
        return {MANIFEST, SIGNATURE, *read_artifact(path).manifest.files}
    host = read_host(path)
    of_saes = {
        f"{grafted.folder}/{name}"
        for grafted in host.manifest.saes
        for name in (MANIFEST, SIGNATURE, *host.saes[grafted.hook].manifest.files)
    }
    return {HOST_MANIFEST, *host.manifest.files} | of_saes


def _files(path: Path) -> set[str]:
    """Return everything in a folder, relative to it, except for folders that hold something."""
    return {
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if entry.is_symlink() or not entry.is_dir() or not any(entry.iterdir())
    }


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
                lock(staging, locks, wait=True)  # another export may think that it is abandoned, and remove it first
            yield staging
            for entry in staging.rglob("*"):
                if entry.is_dir():
                    flush_entries(entry)
                    continue
                entry.chmod(staging.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
                flush(entry)
            flush_entries(staging)
            check_output_folder(path, overwrite)
            _move(staging, path, locks)
            flush_entries(path.parent)
        except BaseException:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise


@contextlib.contextmanager
def explained_errors(path: Path, kind: type[ExportError]) -> Iterator[None]:
    """Raise the errors of the file system as ones that say what was not written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, TimeoutError) and error.errno is None:
            raise  # not of the file system, but of a signal handler that limits the time
        raise kind(f"{path} was not written: {error}") from error


def recover(path: Path) -> None:
    """Put back an artifact that a killed process had moved away from `path`, and remove what such processes left."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}({re.escape(REPLACED)})?")
    left = sorted(entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name))
    for folder in left:
        if folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.ExitStack() as locks:
            locked = lock(folder, locks)
            if locked is False:  # its process lives
                continue
            if folder.name.endswith(REPLACED) and not path.exists():
                with contextlib.suppress(OSError):  # another process has put it back, or a new one in its place
                    folder.rename(path)
            elif locked:
                shutil.rmtree(folder, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step. Return whether the system can do that; if not, nothing has changed.

    Raises:
        OSError: The system can, and refuses.
    """
    return rename(a, b, RENAME_EXCHANGE)


def _move(staging: Path, path: Path, locks: contextlib.ExitStack) -> None:
    if not path.exists():
        staging.rename(path)
        return
    if exchange(staging, path):
        shutil.rmtree(staging, ignore_errors=True)
        return
    replaced = staging.with_name(f"{staging.name}{REPLACED}")
    lock(path, locks)
    path.rename(replaced)
    try:
        staging.rename(path)
    except BaseException:
        if not path.exists():
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)

"""Folders appear whole or not at all, and never cost what was there before."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime.artifact import read_artifact
from runtime.errors import ArtifactError, ExportError
from runtime.manifest import MANIFEST


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target that exists, unless it is an artifact to be overwritten and nothing else is in its folder.

    Raises:
        ExportError: it is refused; the message says what to do.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise ExportError(f"{path} exists. Choose another path, or overwrite it (overwrite=True, --overwrite).")
    if path.is_dir() and not any(path.iterdir()):
        return
    try:
        artifact = read_artifact(path)
    except ArtifactError as error:
        raise ExportError(
            f"{path} exists and will not be overwritten, for it may not be an artifact: {error}"
        ) from None
    strangers = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *artifact.manifest.files})
    if strangers:
        raise ExportError(
            f"{path} exists and will not be overwritten, for it holds what is not of its artifact: "
            f"{', '.join(strangers)}. Move that elsewhere first."
        )


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path`, and rename it to `path` if the block ends well.

    On any exception, Ctrl-C included, the new folder is removed, and so are parents that were made for it; what was at
    `path` stays. Otherwise what was there is replaced; for an instant it has another name, beside `path`.

    Raises:
        OSError: the folder cannot be made or renamed.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        staging.chmod(0o777 & ~_umask())  # mkdtemp's are for the owner only
        yield staging
        for file in staging.iterdir():
            file.chmod(0o666 & ~_umask())  # safetensors' are for the owner only, too
        _move(staging, path)
    except BaseException:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _move(staging: Path, path: Path) -> None:
    if not path.exists():
        staging.rename(path)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}.replaced.", dir=path.parent))
    try:
        path.rename(replaced)  # onto an empty folder: one step on POSIX
        staging.rename(path)
    except BaseException:
        if not path.exists():
            replaced.rename(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Writes folders atomically: the whole folder appears, or nothing does and what was there before stays."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import ArtifactError, ExportError


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse an existing target, unless `overwrite` is set and the folder holds an artifact and no other files.

    Raises:
        ExportError: The target is refused; the message says what to do.
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
    strangers = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *artifact.manifest.files})
    if strangers:
        raise ExportError(
            f"{path} exists and will not be overwritten, because it holds files that are not part of its artifact: "
            f"{', '.join(strangers)}. Move them elsewhere first."
        )


@contextlib.contextmanager
def staged_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `path`, and rename it to `path` when the block succeeds.

    On any exception, Ctrl-C included, the new folder and the parents that were created for it are removed, and what was
    at `path` stays. Otherwise an artifact at `path` is replaced: it is renamed, and removed once the new folder is in
    its place.

    Raises:
        ExportError: Something that may not be replaced has appeared at `path` in the meantime.
        OSError: The folder cannot be created or renamed.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        staging.mkdir()
        yield staging
        for file in staging.iterdir():
            file.chmod(staging.stat().st_mode & 0o666)  # safetensors writes files that only their owner can read
        check_target(path, overwrite)
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
    replaced = staging.with_name(f"{staging.name}.replaced")
    path.rename(replaced)
    try:
        staging.rename(path)
    except BaseException:
        if not path.exists():
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)

"""Folders appear whole or not at all, and never cost what was there before."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import ArtifactError, ExportError


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target that exists, unless it is an artifact to be overwritten and nothing else is in its folder.

    Raises:
        ExportError: it is refused; the message says what to do.
    """
    if path.is_symlink():
        raise ExportError(f"{path} is a symbolic link. Pass the folder that it leads to, or another path.")
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
            f"{path} exists and will not be overwritten, for it may not be an artifact: {error}"
        ) from None
    strangers = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *artifact.manifest.files})
    if strangers:
        raise ExportError(
            f"{path} exists and will not be overwritten, for it holds what is not of its artifact: "
            f"{', '.join(strangers)}. Move that elsewhere first."
        )


@contextlib.contextmanager
def staged_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a new folder beside `path`, and rename it to `path` if the block ends well.

    On any exception, Ctrl-C included, the new folder is removed, and so are parents that were made for it; what was at
    `path` stays. Otherwise what was there is replaced, if it may be; for an instant it has another name, beside `path`.

    Raises:
        ExportError: meanwhile something has appeared at `path` that may not be replaced.
        OSError: the folder cannot be made or renamed.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        staging.mkdir()
        yield staging
        for file in staging.iterdir():
            file.chmod(staging.stat().st_mode & 0o666)  # safetensors' are for the owner only
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

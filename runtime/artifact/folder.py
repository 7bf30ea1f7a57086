"""An artifact on disk: a folder with `sae.json` and the files that it vouches for."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ArtifactError, IntegrityError
from .manifest import MANIFEST, FileRecord, Manifest
from .parse import parse_manifest

CHUNK = 1 << 22


@dataclass(frozen=True)
class Artifact:
    """A folder whose manifest was read; the other files are checked when they are asked for."""

    path: Path
    manifest: Manifest
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def file(self, name: str, check: bool = True) -> Path:
        """Return the path of a file of the artifact, its size and sha256 checked the first time.

        Raises:
            IntegrityError: it is missing, or is not what the manifest says; with `check=False` only if it is missing
                or of another size.
        """
        path, expected = self.path / name, self.manifest.files[name]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise IntegrityError(f"{path} is missing. Copy the whole folder again.") from None
        if size != expected.bytes:
            raise IntegrityError(
                f"{path} has {size} bytes, {MANIFEST} says {expected.bytes}: it is truncated or of another export. "
                "Copy the whole folder again."
            )
        if check and name not in self._checked:
            digest = hash_file(path).sha256
            if digest != expected.sha256:
                raise IntegrityError(
                    f"{path} has sha256 {digest}, {MANIFEST} says {expected.sha256}: it was changed after the export. "
                    "Copy the whole folder again."
                )
            self._checked.add(name)
        return path

    def check_files(self) -> None:
        """Check every file that the manifest names.

        Raises:
            IntegrityError: one is missing, truncated or changed.
        """
        for name in self.manifest.files:
            self.file(name)


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Return the artifact in the folder `path`, its manifest read and the other files not yet touched.

    Raises:
        ArtifactError: `path` is not an artifact folder.
        ManifestError: its `sae.json` cannot be read.
    """
    folder = Path(path)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if not folder.exists():
            found = "it does not exist"
        elif not folder.is_dir():
            found = "it is a file"
        else:
            names = sorted(entry.name for entry in folder.iterdir())
            found = f"it holds {', '.join(names[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}"
        raise ArtifactError(f"{folder} is not an artifact, a folder with {MANIFEST}: {found}.")
    try:
        text = manifest.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{manifest} is not text: {error}. Copy the whole folder again.") from None
    return Artifact(folder, parse_manifest(text))


def hash_file(path: Path) -> FileRecord:
    """Return the size in bytes and the sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(digest.hexdigest(), size)

"""Finds all checkpoints of folders, files and addresses on the Hub, and gives each a path in a tree of artifacts."""

import hashlib
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from runtime.artifact.files import hash_file
from runtime.errors import CheckpointError

from .hub import hub_address, open_address
from .layouts import Folder, Layout, find_below


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
        place: What `load` takes: a path, or an address on the Hub with the hash of the commit.
        files: The files that it consists of; empty on the Hub.
        name: Relative path for its artifact.
    """

    place: str
    files: tuple[Path, ...]
    name: str

    def identity(self) -> str:
        """Return what identifies the content: the address with its commit, or a checksum of the files.

        Raises:
            OSError: A file cannot be read.
        """
        if not self.files:
            return self.place
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name} {hash_file(file).sha256}\n".encode())
        return f"sha256:{digest.hexdigest()}"


def find_checkpoints(
    given: Sequence[str | os.PathLike[str]], forms: Sequence[ModuleType], leave_out: Path
) -> list[Checkpoint]:
    """Return every checkpoint below the given folders, files and addresses.

    The paths of a single folder or repository are kept, and those of several are put below the name of each.

    Args:
        given: Folders, files and addresses.
        forms: Modules of the formats.
        leave_out: Folder whose content is not looked at: the artifacts that were exported before.

    Raises:
        CheckpointError: One of them holds no checkpoint, or two checkpoints would get the same path.
        HubError: An address cannot be listed.
    """
    found: dict[str, Checkpoint] = {}
    for path in given:
        for checkpoint in _find(path, forms, leave_out, several=len(given) > 1):
            other = found.setdefault(checkpoint.name, checkpoint)
            if other is not checkpoint:
                raise CheckpointError(
                    f"{other.place} and {checkpoint.place} would both be exported to {checkpoint.name}. Export them to "
                    "different trees."
                )
    return list(found.values())


def _find(
    path: str | os.PathLike[str], forms: Sequence[ModuleType], leave_out: Path, several: bool
) -> list[Checkpoint]:
    address = hub_address(path)
    if address is not None:
        repository, inside = open_address(address)
        top = posixpath.basename(repository.repo_id)
        layouts = find_below(repository, inside, forms)
        places: list[tuple[str, tuple[Path, ...]]] = [(repository.address(layout.path), ()) for layout in layouts]
    else:
        root, inside = _split(Path(path))
        top = root.name
        layouts = [
            layout for layout in find_below(Folder(root), inside, forms)
            if not (root / layout.path).resolve().is_relative_to(leave_out.resolve())
        ]  # fmt: skip
        places = [(str(root / layout.path), tuple(root / file for file in layout.files)) for layout in layouts]
    if not layouts:
        raise CheckpointError(f"{path} holds no checkpoint. `saeexport formats` lists the files of each format.")
    if len(layouts) == 1 and (layouts[0].path == inside or inside in layouts[0].files):
        names = [_own_name(layouts[0], top)]
    else:
        below = posixpath.basename(inside) or top
        names = [posixpath.join(below, layout.name) if several else layout.name for layout in layouts]
    return [Checkpoint(place, files, name) for (place, files), name in zip(places, names, strict=True)]


def _split(path: Path) -> tuple[Path, str]:
    """Return a folder to list, and the path in it: the file with what is beside and above it, or the folder itself.

    Raises:
        CheckpointError: The path does not exist.
    """
    path = path.absolute()
    if path.is_file():
        return path.parent.parent, f"{path.parent.name}/{path.name}" if path.parent.name else path.name
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist.")
    return path, ""


def _own_name(layout: Layout, top: str) -> str:
    """Return the name of a checkpoint that was given by itself."""
    path = layout.name if layout.path in layout.files else layout.path
    return posixpath.basename(path) or top

"""Checkpoints on the Hugging Face Hub: `hf://OWNER/NAME[@REVISION][/PATH]`.

Only the files of the checkpoint at PATH are downloaded, into the cache of huggingface_hub. They are chosen by their
names, see `layouts`.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from types import ModuleType
from typing import NamedTuple

from runtime.errors import CheckpointError, HubEntryError
from runtime.hub.repository import PREFIX, Repository, open_repository, parse_address

from .layouts import Layout, find_below

SHOWN = 12
"""Number of checkpoints that an error message lists."""

SOURCE = "source"
"""Key of `provenance` for the address of a checkpoint, with the hash of its commit."""


class Located(NamedTuple):
    """A checkpoint on this machine.

    Attributes:
        path: Its file or folder.
        provenance: Where it is from, for the manifest: its address on the Hub, or nothing.
    """

    path: Path
    provenance: dict[str, str]


def hub_address(path: str | os.PathLike[str]) -> str | None:
    """Return the address that `path` is, also if it was made a `Path`, which removes a slash; None for other paths."""
    text = PurePath(path).as_posix() if isinstance(path, os.PathLike) else path
    scheme, colon, rest = text.partition(":")
    return PREFIX + rest.lstrip("/") if scheme == PREFIX.rstrip(":/") and colon and rest.startswith("/") else None


def locate(path: str | os.PathLike[str], forms: Sequence[ModuleType]) -> Located:
    """Return where a checkpoint is on this machine, after downloading it if `path` is an address on the Hub.

    Raises:
        CheckpointError: The address holds no checkpoint, or several.
        HubError: The repository, the revision or the path does not exist, access is refused, or the Hub cannot be
            reached.
    """
    address = hub_address(path)
    if address is None:
        return Located(Path(path), {})
    repository, inside = open_address(address)
    found = find_below(repository, inside, forms)
    if not found:
        files = repository.list_files(inside)
        raise CheckpointError(
            f"{repository.address(inside)} holds no checkpoint; its files are {_some(files)}. `saeexport formats` "
            "lists the files of each format."
        )
    if len(found) > 1:
        paths = [layout.path for layout in found]
        raise CheckpointError(
            f"{repository.address(inside)} holds {len(found)} checkpoints: {_some(paths)}. Add the path of one of them "
            "to the address, or export all of them with `saeexport export-all`."
        )
    return download(repository, found[0])


def open_address(address: str) -> tuple[Repository, str]:
    """Return the repository of an address, at the commit of its revision, and the path inside.

    Raises:
        HubError: It is not an address, or the repository or the revision does not exist.
    """
    repo_id, revision, inside = parse_address(address)
    return open_repository(repo_id, revision), inside


def download(repository: Repository, layout: Layout) -> Located:
    """Download the files of a checkpoint that the cache does not hold.

    Raises:
        HubError: Access is refused, or the Hub cannot be reached.
    """
    try:
        repository.download_all(layout.files)
    except HubEntryError as error:  # listed a moment ago
        raise CheckpointError(f"{repository.address(layout.path)} is incomplete: {error}") from error
    return Located(repository.folder / layout.path, {SOURCE: repository.address(layout.path)})


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN]) or 'none'}{', ...' if len(names) > SHOWN else ''}"

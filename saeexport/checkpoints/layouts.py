"""Finds checkpoints in a list of file names, without opening a file: on a disk, or in a repository on the Hub.

A folder is a checkpoint if it holds the files that a format names by `WEIGHTS` and `CONFIG`, and everything below it
belongs to it. Any other file of tensors is a checkpoint by itself, together with the configs beside it or one folder
above. Reading decides whether a format recognises what was found.
"""

import posixpath
import re
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

from .containers import INDEX
from .finding import HUB_CONFIGS, HUB_WEIGHTS

TENSORS = (".safetensors", ".npz", ".pt", ".pth")
TEXTS = (".json", ".yaml", ".yml")
ANY_LIBRARY = tuple((HUB_WEIGHTS, config) for config in HUB_CONFIGS)
"""Weights and config of a module of any class, as huggingface_hub writes them."""

HALVES = ("W_enc", "W_dec")
"""What distinguishes the names of two files that hold a checkpoint together."""


class Layout(NamedTuple):
    """A checkpoint in a list of files.

    Attributes:
        path: Its file or folder, "" for the folder that was listed.
        files: The files that reading it needs.
        name: Its path as the path of a folder: without the ending of a file, or the file's folder if the file has the
            name that a format gives to all its weights.
    """

    path: str
    files: tuple[str, ...]
    name: str


def find_layouts(files: Iterable[str], forms: Sequence[ModuleType]) -> list[Layout]:
    """Return the checkpoints in a list of paths, in the order that a reader expects: layer 2 before layer 10.

    Args:
        files: Paths of files, with "/" between folders.
        forms: Modules of the formats.
    """
    names = set(files)
    folders = {folder for name in names for folder in _parents(name)}
    found: list[Layout] = []
    owned: set[str] = set()
    for folder in sorted(folders, key=lambda folder: (folder.count("/") + bool(folder), folder)):
        if owned.isdisjoint(_parents(posixpath.join(folder, "file"))) and (layout := _folder(folder, names, forms)):
            found.append(layout)
            owned.add(folder)
    for name in names:
        if name.endswith(TENSORS) and not _is_second_half(name, names) and owned.isdisjoint(_parents(name)):
            found.append(file_layout(name, names, forms))
    return sorted(found, key=lambda layout: _natural(layout.path))


def file_layout(path: str, names: Collection[str], forms: Sequence[ModuleType]) -> Layout:
    """Return the checkpoint of one file, with the configs that may belong to it: `<name>*.json`, `cfg.json`, ..."""
    folder, name = posixpath.split(path)
    stem, configs = name.rpartition(".")[0], _configs(forms)
    files = [path]
    for other in sorted(names):
        place, beside = posixpath.split(other)
        own = place == folder and beside.startswith(stem) and beside.endswith(TEXTS)
        shared = beside in configs and (place == folder or (folder and place == posixpath.dirname(folder)))
        half = other == posixpath.join(folder, name.replace(*HALVES))
        if other != path and (own or shared or half):
            files.append(other)
    usual = {posixpath.basename(weights) for weights, _ in _pairs(forms)}
    return Layout(path, tuple(files), folder if folder and name in usual else posixpath.join(folder, stem))


class Listing(Protocol):
    """Something with files: a folder, or a repository on the Hub."""

    def list_files(self, path: str = "", recursive: bool = True) -> list[str]:
        """Return the paths of the files in the folder `path`, or `[path]` if it is a file, sorted."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine as a `Listing`. Links to folders are followed; hidden folders are left out."""

    root: Path

    def list_files(self, path: str = "", recursive: bool = True) -> list[str]:
        """Return the paths of the files in the folder `path`, or `[path]` if it is a file, sorted."""
        if (self.root / path).is_file():
            return [path]
        found: list[str] = []
        seen: set[Path] = set()

        def visit(place: Path, name: str) -> None:
            if (real := place.resolve()) in seen:  # a link to a folder above
                return
            seen.add(real)
            for entry in place.iterdir():
                inside = posixpath.join(name, entry.name)
                if entry.is_file():
                    found.append(inside)
                elif recursive and entry.is_dir() and not entry.name.startswith("."):
                    visit(entry, inside)

        visit(self.root / path, path)
        return sorted(found)


def find_below(listing: Listing, inside: str, forms: Sequence[ModuleType]) -> list[Layout]:
    """Return the checkpoints at a path of a listing: those of a folder, or the one that a file belongs to.

    Their paths and files begin at the root of the listing, and their names at `inside`.
    """
    files = listing.list_files(inside)
    if files != [inside]:
        relative = [posixpath.relpath(file, inside) if inside else file for file in files]
        return [_below(inside, layout) for layout in find_layouts(relative, forms)]
    folder = posixpath.dirname(inside)
    beside = {*listing.list_files(folder, recursive=False)}
    for layout in find_layouts(map(posixpath.basename, beside), forms):
        if not layout.path and inside in (whole := _below(folder, layout)).files:
            return [whole]  # a file of a format that takes the folder
    above = listing.list_files(posixpath.dirname(folder), recursive=False) if folder else []
    return [file_layout(inside, {*beside, *above}, forms)]


def _below(folder: str, layout: Layout) -> Layout:
    files = tuple(posixpath.join(folder, file) for file in layout.files)
    return Layout(posixpath.join(folder, layout.path) if layout.path else folder, files, layout.name)


def _folder(folder: str, names: Set[str], forms: Sequence[ModuleType]) -> Layout | None:
    """Return the checkpoint of a folder that holds the files of a format; None if it does not."""
    for weights, config in _pairs(forms):
        stored = _stored(posixpath.join(folder, weights), names)
        if stored and (config is None or posixpath.join(folder, config) in names):
            beside = sorted(names & {posixpath.join(folder, name) for name in _configs(forms)})
            return Layout(folder, (*stored, *beside), folder)
    return None


def _pairs(forms: Sequence[ModuleType]) -> list[tuple[str, str | None]]:
    """Return the names of the weights and the config of the formats that are folders."""
    named = [(form.WEIGHTS, getattr(form, "CONFIG", None)) for form in forms if hasattr(form, "WEIGHTS")]
    return [*named, *ANY_LIBRARY]


def _configs(forms: Sequence[ModuleType]) -> set[str]:
    """Return the names of the configs that belong to all files of a folder."""
    named = [(getattr(form, "CONFIG", HUB_CONFIGS[0]), *getattr(form, "BESIDE", ())) for form in forms]
    return {*HUB_CONFIGS, *(name for names in named for name in names)}


def _stored(weights: str, names: Collection[str]) -> list[str]:
    """Return the file of the weights, or the index and the shards that stand for it; nothing if neither is there."""
    if weights in names:
        return [weights]
    if weights + INDEX not in names:
        return []
    stem, ending = posixpath.splitext(weights)
    shards = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(ending)}")
    return [weights + INDEX, *sorted(filter(shards.fullmatch, names))]


def _is_second_half(path: str, names: Collection[str]) -> bool:
    folder, name = posixpath.split(path)
    first = name.replace(HALVES[1], HALVES[0])
    return first != name and posixpath.join(folder, first) in names


def _parents(path: str) -> list[str]:
    """Return the folders that a path is in, the listed folder "" included."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts) + 1)]


def _natural(path: str) -> list[tuple[int, str]]:
    """Return the sort key by which numbers in a path are compared as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]

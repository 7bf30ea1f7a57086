"""Exports every checkpoint of a folder or of a release on the Hub to a tree of artifacts, and resumes after a stop.

`exports.json` in the tree has a record of each artifact: the checkpoint, the options, and the sha256 of the manifest.
An artifact is kept if its record is that of the export that would be done, and its files match their checksums.
"""

import contextlib
import dataclasses
import functools
import gc
import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from runtime.arrays.dtypes import dtype_name
from runtime.artifact.files import hash_file
from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.manifest import MANIFEST
from runtime.artifact.writing import write_text
from runtime.errors import ArtifactError, InputError, SAEError
from runtime.hub.client import quiet_downloads

from ._export import export, stages_in
from .checkpoints.hub import hub_address
from .checkpoints.registry import FORMATS, load, load_for_export
from .checkpoints.releases import Checkpoint, find_checkpoints
from .labels import ENDINGS as LABELS
from .original.dtypes import DTypeLike
from .proof.activations import ENDINGS as ACTIVATIONS
from .proof.activations import read_activations
from .staging import check_output_folder

RECORDS = "exports.json"
"""The file of a tree with the records of its artifacts."""

State = Literal["exported", "kept", "planned", "failed"]


@dataclass(frozen=True)
class TreeEntry:
    """The result of `export_all` for one checkpoint.

    Attributes:
        source: The checkpoint: a path, or an address on the Hub with the hash of the commit.
        path: Folder of the artifact.
        state: "exported"; "kept", because the artifact was there already; "planned", by `dry_run`; or "failed".
        artifact: The artifact; None if there is none.
        error: Why it failed; None if it did not.
        seconds: Duration of loading, exporting and proving.
    """

    source: str
    path: Path
    state: State
    artifact: Artifact | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Options:
    """The options of all exports; `reading` has those of `load`."""

    heads: int | None
    error_term: bool | None
    dtype: str | None
    weights: str | None
    reading: dict[str, Any]

    def record(self, given: "_Files") -> dict[str, Any]:
        """Return the options as JSON values, with the checksums of the files that are given."""
        named = dataclasses.asdict(self)
        named["activations"] = None if given.activations is None else hash_file(given.activations).sha256
        if given.labels is not None:  # trees of earlier versions do not have the key
            named["labels"] = hash_file(given.labels).sha256
        values: dict[str, Any] = json.loads(json.dumps(named, default=str))
        return values

    def export(self, checkpoint: Checkpoint, path: Path, given: "_Files", overwrite: bool) -> Artifact:
        """Load a checkpoint and export it."""
        gc.collect()  # modules hold cycles; the memory of the SAE before is needed now
        sae = load_for_export(checkpoint.place, self.dtype, **self.reading)
        if self.error_term is not None:
            sae.cfg.use_error_term = self.error_term
        activations = None if given.activations is None else read_activations(str(given.activations))
        return export(
            sae, path, activations, head_shape_of(sae.cfg.d_in, self.heads),
            dtype=self.dtype, weights=self.weights, labels=given.labels, overwrite=overwrite,
        )  # fmt: skip


class _Files(NamedTuple):
    """The files that are given for one checkpoint; None for a file that is not."""

    activations: Path | None
    labels: Path | None


@dataclass
class _Records:
    """`exports.json`: for each artifact, by its path in the tree, what it was exported from and how."""

    tree: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, tree: Path) -> "_Records":
        """Return the records of a tree; none if there are none, or if they are damaged."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads((tree / RECORDS).read_text("utf-8"))
            if isinstance(found, dict) and all(isinstance(record, dict) for record in found.values()):
                return cls(tree, found)
        return cls(tree)

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Add a record, and write the file in one step."""
        self.found[name] = record
        write_text(self.tree / RECORDS, json.dumps(self.found, indent=2, sort_keys=True) + "\n")


def export_all(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    tree: str | os.PathLike[str],
    *,
    activations: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    error_term: bool | None = None,
    dtype: DTypeLike | None = None,
    weights: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    **reading: Any,
) -> list[TreeEntry]:
    """Export every checkpoint below the sources to a folder of artifacts with the same relative paths.

    One checkpoint is in memory at a time. A checkpoint that fails does not stop the others. After an interruption, call
    this again: artifacts that were exported from the same checkpoint with the same options, and whose files match their
    checksums, are kept.

    Args:
        sources: Folders, files and addresses on the Hugging Face Hub, `hf://OWNER/NAME[@REVISION][/PATH]`. With
            several, the name of each becomes a folder of the tree.
        tree: Folder for the artifacts. `exports.json` in it records what each was exported from.
        activations: File with real inputs for every proof, or a folder with one file for each checkpoint, at the path
            of its artifact in the tree: `layer_3.npy` for `layer_3`. None draws random inputs.
        labels: File of labels that `load_labels` reads, or a folder with one for each checkpoint: `layer_3.json` for
            `layer_3`. None keeps the labels of checkpoints that are artifacts.
        heads: Number of heads, for graphs that take `(tokens, n_heads, d_head)`; None for `(tokens, d_in)`.
        error_term: Whether to add the error term to the output; None keeps each checkpoint's setting.
        dtype: As for `export`.
        weights: As for `export`.
        overwrite: Whether to replace artifacts that were exported from another checkpoint or with other options.
        dry_run: Whether to return what would be done, and do nothing. Files on the Hub are listed, not downloaded.
        **reading: Further options of `load`, for every checkpoint.

    Returns:
        An entry for each checkpoint, in order.

    Raises:
        CheckpointError: A source holds no checkpoint, or two checkpoints would get the same path.
        HubError: A source on the Hub cannot be listed.
        InputError: `activations` or `labels` does not exist, or `dtype` is unknown.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    for what, place in (("activations", activations), ("labels", labels)):
        if place is not None and not Path(place).exists():
            raise InputError(f"{place} does not exist; {what} must be a file, or a folder of files.")
    options = _Options(
        heads, error_term, None if dtype is None else dtype_name(dtype), weights, _without_defaults(reading)
    )
    found = find_checkpoints(given, FORMATS, leave_out=Path(tree))
    records = _Records.read(Path(tree))
    # The Hub has progress bars of its own.
    quiet = quiet_downloads() if any(map(hub_address, given)) else contextlib.nullcontext()
    entries = []
    with tqdm(found, desc="exporting", unit="SAE", disable=None, leave=False) as bar, quiet, stages_in(bar):
        for checkpoint in bar:
            bar.set_description(f"exporting {checkpoint.name}")
            find_files = functools.partial(_files_of, checkpoint, activations, labels)
            entries.append(_attempt(checkpoint, records, find_files, options, overwrite, dry_run))
    return entries


def head_shape_of(d_in: int, heads: int | None) -> tuple[int, int] | None:
    """Return `(n_heads, d_head)` for a number of heads; None for None.

    Raises:
        InputError: The number does not divide `d_in`.
    """
    if heads is None:
        return None
    if heads < 1 or d_in % heads:
        raise InputError(f"--heads is {heads}; it must divide d_in = {d_in}.")
    return heads, d_in // heads


def _attempt(
    checkpoint: Checkpoint,
    records: _Records,
    find_files: Callable[[], _Files],
    options: _Options,
    overwrite: bool,
    dry_run: bool,
) -> TreeEntry:
    """Export a checkpoint unless its artifact exists, and return the result."""
    path = records.tree / checkpoint.name
    started = time.monotonic()
    try:
        files = find_files()
        wanted = {"source": checkpoint.identity(), "options": options.record(files)}
        if (artifact := _kept(path, records.found.get(checkpoint.name), wanted)) is not None:
            return TreeEntry(checkpoint.place, path, "kept", artifact)
        check_output_folder(path, overwrite)
        if dry_run:
            return TreeEntry(checkpoint.place, path, "planned")
        artifact = options.export(checkpoint, path, files, overwrite)
        records.add(checkpoint.name, wanted | {"manifest": hash_file(path / MANIFEST).sha256})
        return TreeEntry(checkpoint.place, path, "exported", artifact, seconds=time.monotonic() - started)
    except (SAEError, OSError) as error:
        reason = str(error)
    except Exception as error:  # a fault in one checkpoint must not stop the others
        reason = f"{type(error).__name__}: {error}"
    return TreeEntry(checkpoint.place, path, "failed", error=reason, seconds=time.monotonic() - started)


def _without_defaults(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load` that differ from its defaults, as JSON values.

    Raises:
        TypeError: `load` does not have such an argument.
    """
    signature = inspect.signature(load)
    signature.bind("", **reading)  # a misspelt option is found before any work
    given = {
        key: list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        for key, value in sorted(reading.items())
    }
    defaults = {key: [] if found.default == () else found.default for key, found in signature.parameters.items()}
    return {key: value for key, value in given.items() if value != defaults[key]}


def _files_of(
    checkpoint: Checkpoint, activations: str | os.PathLike[str] | None, labels: str | os.PathLike[str] | None
) -> _Files:
    """Return the files with the activations and the labels of a checkpoint.

    Raises:
        InputError: A folder was given that has no file for it.
    """
    return _Files(
        _file_of(checkpoint, "activations", activations, ACTIVATIONS), _file_of(checkpoint, "labels", labels, LABELS)
    )


def _file_of(
    checkpoint: Checkpoint, what: str, given: str | os.PathLike[str] | None, endings: Sequence[str]
) -> Path | None:
    """Return the file that is given for a checkpoint, by itself or in a folder, or None.

    Raises:
        InputError: A folder was given that has no file for it.
    """
    if given is None or Path(given).is_file():
        return None if given is None else Path(given)
    candidates = [Path(given) / f"{checkpoint.name}{ending}" for ending in endings]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(f"There are no {what} for {checkpoint.name}: expected {' or '.join(map(str, candidates))}.")


def _kept(path: Path, recorded: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Artifact | None:
    """Return the artifact at `path` if it is intact and what `wanted` would export again; otherwise None."""
    if recorded is None or {**wanted, "manifest": recorded.get("manifest")} != recorded:
        return None
    try:
        if hash_file(path / MANIFEST).sha256 != recorded["manifest"]:
            return None
        artifact = read_artifact(path)
        artifact.check_files()
    except (ArtifactError, OSError):
        return None
    return artifact

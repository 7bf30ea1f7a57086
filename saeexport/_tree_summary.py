"""The summary that `saeexport export-all` prints: a row for each checkpoint, and the reasons of those that failed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runtime.artifact.manifest import Manifest
from runtime.tables import format_table

from ._export_all import TreeEntry

HEADINGS = ("artifact", "", "architecture", "size", "MB", "largest error", "seconds")
RIGHT = (4, 5, 6)


def summarize(entries: Sequence[TreeEntry], tree: Path) -> str:
    """Return a table of all entries, the number in each state, and the error of each that failed.

    The largest error is that of a token against float64, over the hooks; `int8` artifacts have it against the original.
    """
    counts = Counter(entry.state for entry in entries)
    parts = [
        format_table([_row(entry, tree) for entry in entries], header=HEADINGS, right=RIGHT),
        ", ".join(f"{count} {state}" for state, count in counts.items()),
    ]
    failed = [entry for entry in entries if entry.error is not None]
    if failed:
        parts.append("\n".join(f"{_name(entry, tree)}: {entry.error}" for entry in failed))
    return "\n\n".join(parts)


def _row(entry: TreeEntry, tree: Path) -> tuple[str, ...]:
    name, seconds = _name(entry, tree), f"{entry.seconds:.1f}" if entry.state == "exported" else ""
    if entry.artifact is None:
        return (name, entry.state, "", "", "", "", seconds)
    manifest = entry.artifact.manifest
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    return (name, entry.state, manifest.sae.architecture, _size(manifest), f"{size:.1f}", _worst(manifest), seconds)


def _name(entry: TreeEntry, tree: Path) -> str:
    return entry.path.relative_to(tree).as_posix()


def _size(manifest: Manifest) -> str:
    return f"{manifest.sae.d_in} x {manifest.sae.d_sae}"


def _worst(manifest: Manifest) -> str:
    return f"{max((hook.artifact.token for hook in manifest.record.hooks.values()), default=0.0):.1e}"

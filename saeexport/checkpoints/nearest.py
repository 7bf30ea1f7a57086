"""Says which format a file or folder that no reader takes is nearest to, and what differs."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from .containers import is_stored
from .files import read_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")
"""Endings of the files whose tensors are looked at."""

ENOUGH = 0.5
"""The least share of tensors' names in common, of all names of both, at which a format is near."""


def describe_nearest(path: Path, forms: Iterable[ModuleType]) -> str:
    """Return a sentence on the formats that `path` is nearest to; an empty string if none is near.

    A folder is near to the formats whose file of weights it has. A file is near to the formats with the most names of
    tensors in common, by the `TENSORS` or `NAMES` of their modules.

    Raises:
        CheckpointError: A file is damaged, or holds something else than tensors.
    """
    if path.is_dir():
        return _by_files(path, list(forms))
    return _by_tensors(path, list(forms)) if path.is_file() and path.suffix in SUFFIXES else ""


def _by_files(folder: Path, forms: list[ModuleType]) -> str:
    """Return which config a folder lacks, by the name of its weights."""
    for weights in sorted({form.WEIGHTS for form in forms if hasattr(form, "WEIGHTS")}):
        owners = [form for form in forms if getattr(form, "WEIGHTS", None) == weights and hasattr(form, "CONFIG")]
        if not owners or not is_stored(folder / weights) or any((folder / form.CONFIG).is_file() for form in owners):
            continue
        configs = " or ".join(sorted({form.CONFIG for form in owners}))
        return f"{weights} is a file of {_titles(owners)}, but {configs} is missing beside it."
    return ""


def _by_tensors(path: Path, forms: list[ModuleType]) -> str:
    """Return the formats with the most names of tensors in common with a file, and the names that differ."""
    found = set(read_tensors(path))
    scored = [
        (len(found & names) / len(found | names), names, form) for form in forms for names in _names_of(form) if names
    ]
    best = max((score for score, _, _ in scored), default=0.0)
    if best < ENOUGH:
        return ""
    names = next(names for score, names, _ in scored if score == best)
    near = list(dict.fromkeys(form for score, others, form in scored if score == best and others == names))
    lacks, has = sorted(names - found), sorted(found - names)
    differs = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(has)}"] * bool(has)
    how = f"but {' and '.join(differs)}" if differs else "but it has another name, place or shape of its tensors"
    return f"It is nearest to {_titles(near)} ({'; '.join(form.NAME for form in near)}), {how}."


def _names_of(form: ModuleType) -> list[frozenset[str]]:
    """Return the sets of tensors' names that checkpoints of a format have."""
    if hasattr(form, "TENSORS"):
        return [frozenset(names) for names in form.TENSORS]
    return [frozenset(form.NAMES)] if hasattr(form, "NAMES") else []


def _titles(forms: list[ModuleType]) -> str:
    return " and ".join(form.TITLE for form in forms)

"""Says which format is the nearest to a path that none recognises, and what differs.

The nearest format is the one of whose files (`CONFIG` and `WEIGHTS`) or tensors (`TENSORS`) most are there.
"""

import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from safetensors import safe_open

from .archives import npz_names
from .containers import ContainerError
from .finding import HUB_WEIGHTS, PICKLED
from .layouts import TENSORS
from .pickled import peek, tensor_names

NEAR = 0.5
"""Smallest fraction of common names at which a format is called the nearest."""

ANYBODYS = (HUB_WEIGHTS, "weights.safetensors")
"""Names of files that say nothing about the format of the tensors in them."""

SHOWN = 6
"""Number of names that a message lists."""


def describe(path: Path, formats: Sequence[ModuleType]) -> str:
    """Return sentences that say what is at a path, and which format is the nearest to it, if one is near."""
    if not path.exists():
        return f"{path} does not exist."
    if path.is_dir():
        entries = sorted(entry.name for entry in path.iterdir())
        found = f"{path} is a folder with {_shown(entries) or 'nothing in it'}."
        present = {name for form in formats for name in _files(form) if (path / name).is_file()}
        weights = {name for name in present if not name.endswith(".json")}  # many formats have a config.json
        described = (
            _describe_files(path, weights, formats),
            *(_describe_tensors(path / name, formats) for name in entries if (path / name).is_file()),
            _describe_files(path, present, formats),
        )
        return f"{found} {next(filter(None, described), '')}".rstrip()
    if not path.is_file():  # a pipe would be waited for
        return f"{path} is not an ordinary file."
    found = f"{path} is a file ending in {path.suffix!r}." if path.suffix else f"{path} is a file without an ending."
    near = _describe_files(path.parent, {path.name}, formats)
    return f"{found} {near or _describe_tensors(path, formats)}".rstrip()


def _describe_files(folder: Path, names: Collection[str], formats: Iterable[ModuleType]) -> str:
    """Return a sentence about the format whose files have most of these names; "" if none has one."""
    shares = {form: sum(name in names for name in _files(form)) / len(_files(form)) for form in formats if _files(form)}
    best = max(shares, key=lambda form: shares[form], default=None)
    if best is None or not shares[best]:
        return ""
    lacking = [name for name in _files(best) if not (folder / name).is_file()]
    differs = f"it lacks {', '.join(lacking)}" if lacking else "the content of its files differs"
    return f"The nearest format is {best.TITLE} ({best.NAME}); {differs}."


def _files(form: ModuleType) -> tuple[str, ...]:
    """Return the names of the files of a format; none if they do not tell it from others."""
    weights = getattr(form, "WEIGHTS", ANYBODYS[0])
    return () if weights in ANYBODYS else (*filter(None, [getattr(form, "CONFIG", None)]), weights)


def _describe_tensors(path: Path, formats: Iterable[ModuleType]) -> str:
    """Return a sentence about the tensors of a file and the format that has such; "" if it is no file of tensors."""
    if path.suffix not in TENSORS:
        return _describe_ending(path)
    names = _names(path)
    if not names:
        return (
            f"{path.name} cannot be read as named tensors: it is damaged, or holds other objects"
            f"{_describe_objects(path)}. Save the state dict by itself: torch.save(sae.state_dict(), path)."
        )
    found = f"{path.name} holds {_shown(sorted(names))}"
    shares = {
        form: len(names & set(known)) / len(names | set(known))
        for form in formats
        if (known := getattr(form, "TENSORS", ()))
    }
    nearest = max(shares, key=lambda form: shares[form], default=None)
    if nearest is None or shares[nearest] < NEAR:
        return f"{found}; no format has tensors of these names."
    near = [form for form in reversed(shares) if set(form.TENSORS) == set(nearest.TENSORS)]
    missing = [name for name in nearest.TENSORS if name not in names]
    extra = sorted(names - set(nearest.TENSORS))
    differs = [f"it lacks {', '.join(missing)}"] if missing else []
    differs += [f"it also has {_shown(extra)}"] if extra else []
    differs = differs or ["its config is missing, or a file has another name"]
    title = " or ".join(f"{form.TITLE} ({form.NAME})" for form in near)
    return f"{found}. The nearest format is {title}; {', and '.join(differs)}."


def _describe_ending(path: Path) -> str:
    """Return a sentence on a file that `torch.save` wrote under another ending; "" for another file."""
    if path.suffix in PICKLED or not zipfile.is_zipfile(path):
        return ""
    try:
        tensor_names(path)
    except Exception:  # as in `_names`
        return ""
    return f"torch.save wrote it: give it the ending {PICKLED[0]}."


def _describe_objects(path: Path) -> str:
    """Return what a file of `torch.save` holds instead of tensors, for the end of a sentence; "" if it is damaged."""
    if path.suffix not in PICKLED:
        return ""
    try:
        values = peek(path).tensors
    except Exception:  # as in `_names`
        return ", such as a whole module"
    kinds = [f"{name} ({type(value).__name__})" for name, value in sorted(values.items())]
    return f": {_shown(kinds)}" if kinds else ""


def _names(path: Path) -> set[str]:
    """Return the names of the tensors in a file; an empty set if there are none or they cannot be read.

    Raises:
        ContainerError: The file wraps its tensors in a way that is not known.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                return set(file.keys())
        if path.suffix == ".npz":
            return set(npz_names(path))
        return tensor_names(path)
    except ContainerError:
        raise
    except Exception:  # a damaged file can raise anything, and this only describes it
        return set()


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

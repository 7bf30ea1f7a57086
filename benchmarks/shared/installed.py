"""What a way of running an SAE needs to be installed, and how large that is, by the metadata of what is installed."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_size(roots: Sequence[str]) -> dict[str, object]:
    """Return the distributions that `roots` require here, themselves included, and the bytes of their files together.

    Bytecode does not count, since it depends on what was imported.
    """
    names = required(roots)
    return {"bytes": sum(size_of(name) for name in names), "distributions": sorted(names)}


def required(roots: Sequence[str]) -> set[str]:
    """Return the canonical names of `roots` and of all that they require on this machine, extras followed.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), "") for name in roots]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(requirement.name)
                waiting += [(wanted, one) for one in ("", *requirement.extras)]
    return {name for name, _ in found}


def size_of(name: str) -> int:
    """Return the bytes of a distribution's files."""
    files = importlib.metadata.distribution(name).files or []
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())

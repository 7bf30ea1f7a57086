"""The distributions that a program needs, and the size of their files, from the metadata of what is installed."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_size(roots: Sequence[str]) -> dict[str, object]:
    """Return the distributions that `roots` require, themselves included, and the total bytes of their files.

    Bytecode does not count, because it depends on what was imported.
    """
    names = required_distributions(roots)
    return {"bytes": sum(distribution_size(name) for name in names), "distributions": sorted(names)}


def required_distributions(roots: Sequence[str]) -> set[str]:
    """Return the canonical names of `roots` and of everything that they require on this machine, with their extras.

    Raises:
        importlib.metadata.PackageNotFoundError: A required distribution is not installed.
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


def distribution_size(name: str) -> int:
    """Return the total bytes of a distribution's files."""
    files = importlib.metadata.distribution(name).files or []
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())

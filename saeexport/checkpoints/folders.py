"""Reads what the names of the folders above a checkpoint tell: in some formats, its files do not."""

import re
from pathlib import Path


def search_above(path: Path, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """Return the match of a pattern in the nearest name of a path that has one, its own name included."""
    return next(filter(None, map(pattern.search, reversed(path.absolute().parts))), None)

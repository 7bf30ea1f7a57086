"""What the measurements share: the machine they ran on, sizes on the command line, medians with their quartiles."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

ROOT = Path(__file__).parents[2]


def processor() -> str:
    """Return the processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def machine(packages: Sequence[str]) -> dict[str, object]:
    """Return date, processor, Python and the versions of `packages`, for a file of results."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"date": date.today().isoformat(), "processor": processor(), "python": platform.python_version(), **versions}


def shape_of(text: str) -> tuple[int, int]:
    """Return (d_in, d_sae) of a size such as "768x24576"."""
    d_in, d_sae = text.split("x")
    return int(d_in), int(d_sae)


def quartiles(values: ArrayLike, digits: int = 4) -> list[float]:
    """Return the median and the two quartiles, in this order."""
    return [round(float(q), digits) for q in np.quantile(np.asarray(values), [0.5, 0.25, 0.75])]


def ratio(values: Sequence[float]) -> str:
    """Return a median and its quartiles as `1.53 (1.50-1.56)`."""
    return "{:.2f} ({:.2f}-{:.2f})".format(*values)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def field_of(process: int | str, field: str) -> int:
    """Return a field of a process in bytes, such as `VmHWM`, the most that was resident; 0 where there is no /proc."""
    path = Path(f"/proc/{process}/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)

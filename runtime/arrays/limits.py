"""The memory that this process may use, as a bound on what a call may ask for."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .cgroups import limit_files


def check_fits(what: str, nbytes: int) -> None:
    """Refuse an array that is larger than the memory of this machine, or than what this process may use of it.

    A broadcast view of a small array can have any number of tokens; without a bound, a call with it would fill the
    memory, or run for days. In a container, the kernel would end the process without a word.

    Args:
        what: Name of the array, for the message.
        nbytes: Its size in bytes.

    Raises:
        InputError: It is larger.
    """
    machine, allowed = physical_memory(), memory_limit()
    if nbytes <= min(machine, allowed):
        return
    if machine <= allowed:
        raise InputError(
            f"{what} would take {_gib(nbytes)}, and this machine has {_gib(machine)} of memory. Pass fewer tokens per "
            "call."
        )
    raise InputError(
        f"{what} would take {_gib(nbytes)}, and this process may use {_gib(allowed)}, the limit of its container or "
        "control group. Pass fewer tokens per call."
    )


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:,.{0 if nbytes >= 10 * 2**30 else 2}f} GiB"


@functools.cache
def physical_memory() -> float:
    """Return the size of this machine's memory in bytes, or infinity where the system does not tell it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # AttributeError: Windows
        return float("inf")


@functools.cache
def memory_limit(root: Path = Path("/")) -> float:
    """Return how many bytes the control groups of this process allow it, or infinity without a limit.

    Args:
        root: Root of the file system, in which `proc` and the control groups are looked for.
    """
    return min(_limits(root), default=float("inf"))


def _limits(root: Path) -> Iterator[int]:
    """Yield the limits of the control groups that this process is in.

    Source: Linux, cgroup v2, `memory.max` ("max", or bytes); cgroup v1, `memory.limit_in_bytes`, in which a number near
    2^63 stands for no limit.
    """
    for files in limit_files(root, "memory", "memory.max", "memory.limit_in_bytes"):
        for file in files:
            with contextlib.suppress(OSError, ValueError):  # no limit, or no such file
                if (limit := int(file.read_text())) > 0:  # some sandboxes write 0 or -1 where there is no limit
                    yield limit

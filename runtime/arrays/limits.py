"""The memory of this machine, as a bound on what a call may ask for."""

import functools
import os

from ..errors import InputError


def check_fits(what: str, nbytes: int) -> None:
    """Refuse an array that is larger than the memory of this machine.

    A broadcast view of a small array can have any number of tokens; without a bound, a call with it would fill the
    memory, or run for days.

    Args:
        what: Name of the array, for the message.
        nbytes: Its size in bytes.

    Raises:
        InputError: It is larger.
    """
    if nbytes > physical_memory():
        raise InputError(
            f"{what} would take {nbytes / 2**30:,.0f} GiB, and this machine has {physical_memory() / 2**30:,.0f} GiB "
            "of memory. Pass fewer tokens per call."
        )


@functools.cache
def physical_memory() -> float:
    """Return the size of this machine's memory in bytes, or infinity where the system does not tell it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # AttributeError: Windows
        return float("inf")

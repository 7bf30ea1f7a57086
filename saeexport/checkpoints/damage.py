"""Tells the exceptions that damaged files cause from those of the program that reads them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import CheckpointError

READERS = frozenset({"numpy", "safetensors", "saeexport", "torch"}) | sys.stdlib_module_names
"""Packages that read checkpoints."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the exceptions of the code that reads a file into `CheckpointError`: a damaged file can raise anything.

    An exception of a signal handler, such as a time limit, can arrive in the same place. It was raised in the module of
    the handler, and passes through.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None or str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] not in READERS:
            raise
        raise CheckpointError(f"{path} cannot be read: {error}") from error

"""Tells the exceptions that damaged files cause from those of the program that reads them."""

import sys

READERS = frozenset({"numpy", "safetensors", "saeexport", "torch"}) | sys.stdlib_module_names
"""Packages that read checkpoints."""


def is_of_a_reader(error: Exception) -> bool:
    """Tell whether an exception was raised by the code that reads a file.

    A damaged file can raise anything there. An exception of a signal handler, such as a time limit, can arrive in the
    same place; it was raised in the module of the handler.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in READERS

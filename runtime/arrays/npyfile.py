"""Reads `.npy` files that a caller names, however damaged they are.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import os
import tokenize
import zipfile
from typing import Any

import numpy as np

from ..errors import InputError
from .arguments import check_is_file

UNREADABLE = (ValueError, EOFError, SyntaxError, tokenize.TokenError, TypeError, OverflowError)
"""What NumPy raises for a file that is not one of arrays of numbers. The header is a Python literal, and NumPy hands on
what Python's parser raises."""


def map_npy(path: str | os.PathLike[str]) -> Any:
    """Return the array of a `.npy` file, mapped into memory and not loaded.

    Raises:
        InputError: The file is missing, is not an ordinary file, or does not hold one array of numbers.
        OSError: The file may not be read.
    """
    check_is_file(path, "Pass the path of a .npy file.")
    try:
        return np.lib.format.open_memmap(path, mode="r")  # `np.load` would advise to load pickled objects
    except UNREADABLE as error:
        if zipfile.is_zipfile(path):
            raise InputError(
                f"{os.fspath(path)} holds several arrays. Save the one that you want with numpy.save."
            ) from error
        raise InputError(f"{os.fspath(path)} is not a .npy file of numbers: {error}.") from error

"""Whole numbers, paths, files and names of outputs as callers pass them."""

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError


def as_integer(
    name: str, value: Any, least: int | None = None, most: int | None = None, hint: str = "", most_is: str = ""
) -> int:
    """Return a whole number as an int.

    Args:
        name: Name of the argument, for the message.
        value: An int, an integer of numpy, or another object with `__index__`. A bool is refused: it is a slip.
        least: Smallest number that is accepted; None for no bound.
        most: Largest number that is accepted; None for no bound.
        hint: What the message says about other values that are accepted.
        most_is: What the message calls the largest number, such as "d_sae = ".

    Raises:
        InputError: `value` is something else, or out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; it must be a whole number{hint}.") from None
    if (least is not None and number < least) or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most_is}{most}"
        raise InputError(f"{name} is {number}; it must be {bounds}{hint}.")
    return number


def as_path(name: str, value: Any) -> Path:
    """Return the path of a file or folder.

    Args:
        name: Name of the argument, for the message.
        value: A string or an `os.PathLike`.

    Raises:
        InputError: `value` is something else, or contains a null character, which no file system allows.
    """
    path = Path(value) if isinstance(value, (str, os.PathLike)) else None
    if path is None or "\0" in str(path):
        raise InputError(f"{name} is {value!r}; it must be the path of a file or folder, as a str or an os.PathLike.")
    return path


def check_is_file(path: str | os.PathLike[str], advice: str) -> None:
    """Refuse a path that does not lead to an ordinary file: opening a FIFO would wait for a writer.

    Args:
        path: The path.
        advice: What the message says to do, a sentence.

    Raises:
        InputError: It does not exist, or is a folder, a FIFO or a device.
    """
    if not os.path.isfile(path):
        what = "is not an ordinary file" if os.path.lexists(path) else "does not exist"
        raise InputError(f"{os.fspath(path)} {what}. {advice}")


def as_output_names(names: Any) -> list[str] | None:
    """Return the names of outputs that a caller asks for as a list; None stands for all.

    Raises:
        InputError: It is neither an iterable of names nor None. A string is refused: it is an iterable of letters.
    """
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"names is {names!r}; it must be a list of outputs, or None for all.")
    return [str(name) for name in names]

"""Files of activations: `.npy` and Parquet."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.arguments import check_is_file
from ..arrays.dtypes import BFLOAT16
from ..arrays.npyfile import map_npy
from ..arrays.tensor import Array, feed_of
from ..errors import InputError
from ..session.batch import as_dtype, flat_shape
from ..session.session import SAESession

BATCH = 2048
"""Tokens that are read at a time."""

NPY, PARQUET = b"\x93NUMPY", b"PAR1"
"""The first bytes of the files."""

COLUMNS = ("indices", "values", "l0")
"""The columns of the features."""


@dataclass(frozen=True)
class Source:
    """Activations in a file.

    Attributes:
        rows: Number of tokens.
        blocks: Function of the first token and the one after the last, which yields the kept columns, if there are
            any, and the activations, batch by batch.
    """

    rows: int
    blocks: Callable[[int, int], Iterator[tuple[Any, Array]]]


def open_source(path: Path, session: SAESession, column: str | None, keep: tuple[str, ...]) -> Source:
    """Open a `.npy` or a Parquet file of activations; see `runtime.commands.columns.write_columns`.

    Raises:
        InputError: It is neither, or it does not have such activations or columns.
    """
    check_is_file(path, "Give a .npy or a Parquet file of activations.")
    with path.open("rb") as file:
        start = file.read(len(NPY))
    if start.startswith(PARQUET):
        return _open_parquet(path, session, column, keep)
    if column is not None or keep:
        raise InputError(f"{path} is not a Parquet file, so it does not have columns. Leave out --column and --keep.")
    if start != NPY:
        raise InputError(
            f"{path} is neither a .npy file nor a Parquet file. An SAE takes activations; texts need the folder of a "
            "grafted host."
        )
    x = map_array(path)
    lead = flat_shape(x.shape, session.cfg.d_in, session.cfg.hook_name, str(path))[:-1]
    x = as_rows(x, x.shape[len(lead) :])
    as_input(x[:0], session.cfg.dtype, str(path))

    def blocks(start: int, stop: int) -> Iterator[tuple[Any, Array]]:
        for first in range(start, max(stop, start + 1), BATCH):
            yield None, as_input(x[first : min(first + BATCH, stop)], session.cfg.dtype, str(path))

    return Source(len(x), blocks)


def _open_parquet(path: Path, session: SAESession, column: str | None, keep: tuple[str, ...]) -> Source:
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow
    lists = [field.name for field in schema if pa.types.is_fixed_size_list(field.type) or pa.types.is_list(field.type)
             or pa.types.is_large_list(field.type)]  # fmt: skip
    if column is None and len(lists) != 1:
        raise InputError(
            f"{path} has {len(lists)} columns of lists{': ' if lists else ''}{', '.join(lists)}. Choose the column of "
            "the activations with --column."
        )
    name = lists[0] if column is None else column
    check_columns(path, schema.names, name, keep, COLUMNS)
    if name not in lists:
        raise InputError(f"Column {name} of {path} is {schema.field(name).type}; activations are lists of numbers.")

    def blocks(start: int, stop: int) -> Iterator[tuple[Any, Array]]:
        for row, part in parquet_rows(file, (name, *keep), start, stop, BATCH):
            x = _activations(part.column(name), row, session, f"column {name} of {path}")
            yield (part.select(list(keep)) if keep else None), x
        if start == stop:
            kept = schema.empty_table().select(list(keep)) if keep else None
            yield kept, np.zeros((0, session.cfg.d_in), np.float32)

    return Source(file.metadata.num_rows, blocks)


def check_other_file(source: str | os.PathLike[str], target: Path) -> None:
    """Check that a file to write is not the one that is read, which would be lost.

    Raises:
        InputError: They are one file.
    """
    if os.path.exists(source) and target.exists() and os.path.samefile(source, target):
        raise InputError(f"{target} is the file that is read, and would be lost. Choose another file to write.")


def open_parquet(path: Path) -> Any:
    """Return an open `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: It is not a Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a Parquet file that pyarrow reads: {error}") from error


def check_columns(path: Path, names: Sequence[str], column: str, keep: Sequence[str], own: Collection[str]) -> None:
    """Check the columns that are read from a Parquet file.

    Args:
        path: The file.
        names: The columns that it has.
        column: The column whose features are computed.
        keep: The columns to copy.
        own: The columns of the features.

    Raises:
        InputError: The file does not have one of them or has several of that name, one is to be kept twice, or
            features have a column of that name.
    """
    if missing := [each for each in (column, *keep) if each not in names]:
        raise InputError(f"{path} does not have a column {', '.join(missing)}; it has {', '.join(names)}.")
    if several := [each for each in dict.fromkeys((column, *keep)) if names.count(each) > 1]:
        raise InputError(f"{path} has several columns {', '.join(several)}. Give each of them a name of its own.")
    if twice := [each for each in dict.fromkeys(keep) if keep.count(each) > 1]:
        raise InputError(f"{', '.join(twice)} is to be kept twice. Name each column once.")
    if taken := {*own} & {*keep}:
        raise InputError(f"{', '.join(sorted(taken))} cannot be kept: the features take that name.")


def parquet_rows(file: Any, columns: Sequence[str], start: int, stop: int, most: int) -> Iterator[tuple[int, Any]]:
    """Yield rows of a Parquet file, at most some at a time, each time with the number of the first one.

    Args:
        file: The `pyarrow.parquet.ParquetFile`.
        columns: The columns to read; one that is named twice is read once.
        start: The first row.
        stop: The row after the last one.
        most: Largest number of rows at a time.
    """
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    row, first = 0, 0
    while first < len(counts) and row + counts[first] <= start:
        row, first = row + counts[first], first + 1
    groups = list(range(first, len(counts)))
    for batch in file.iter_batches(most, row_groups=groups, columns=list(dict.fromkeys(columns))):
        if row >= stop:
            break
        before = max(start - row, 0)
        part = batch.slice(before, max(0, min(stop, row + len(batch)) - max(start, row)))
        if len(part):
            yield row + before, part
        row += len(batch)


def _activations(column: Any, row: int, session: SAESession, source: str) -> Array:
    """Return a column of lists as an array, `(tokens, d_in)`."""
    width = session.cfg.d_in
    wanted = f"{source} must have {width} numbers in every row, and none missing"
    if column.null_count or column.flatten().null_count:
        raise InputError(f"{wanted}. Fill or leave out the rows with nulls.")
    lengths = np.asarray(column.value_lengths())
    if (wrong := np.flatnonzero(lengths != width)).size:
        raise InputError(f"{wanted}; row {row + int(wrong[0])} has {lengths[wrong[0]]}.")
    array = column.flatten().to_numpy().reshape(-1, width)
    if array.dtype == np.float64:  # what pyarrow and pandas make of Python's floats
        raise InputError(f"{source} holds float64, and this SAE takes {session.cfg.dtype}. Write it as list<float>: "
                         "pyarrow.array(rows, pyarrow.list_(pyarrow.float32())).")  # fmt: skip
    return as_input(array, session.cfg.dtype, source)


def as_rows(x: Array, token_shape: tuple[int, ...]) -> Array:
    """Return activations as `(tokens, *token_shape)`."""
    return x.reshape(-1, *token_shape) if x.size else x.reshape(0, *token_shape)


def as_input(x: Array, dtype: str, source: str) -> Array:
    """Return rows of the file as an input of the SAE; float32 is rounded to bfloat16, which a .npy file cannot hold."""
    if dtype == BFLOAT16 and x.dtype == np.float32:
        return feed_of(x, dtype)
    as_dtype(x, dtype, source)
    return x


def map_array(path: str | os.PathLike[str]) -> Any:
    """Return the array in a `.npy` file, mapped into memory.

    Raises:
        InputError: It is not such a file, or not in C order.
    """
    x = map_npy(path)
    if not x.flags.c_contiguous:
        raise InputError(f"{os.fspath(path)} is in Fortran order. Save numpy.ascontiguousarray(x) instead.")
    return x

"""Files of texts: a text on each line, or a column of a Parquet file."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arrays.arguments import check_is_file
from ..errors import InputError
from .sources import PARQUET, check_columns, open_parquet, parquet_rows

AT_ONCE = 256
"""Texts that are read at a time."""

INDEXED = 1024
"""Distance of the lines whose place in the file is kept in memory."""

COLUMNS = ("row", "token", "start", "end", "indices", "values", "l0")
"""The columns of the features of texts."""


@dataclass(frozen=True)
class Texts:
    """Texts in a file.

    Attributes:
        rows: Number of texts.
        read: Function of the first text and the one after the last, which yields the number of a text, the kept
            columns, if there are any, and the texts from there on, some at a time.
    """

    rows: int
    read: Callable[[int, int], Iterator[tuple[int, Any, list[str]]]]


def open_texts(path: Path, column: str | None, keep: tuple[str, ...]) -> Texts:
    """Open a file of texts, in UTF-8 with a text on each line, or a Parquet file with a column of them.

    Args:
        path: The file.
        column: Column of a Parquet file with the texts; None if only one column has texts.
        keep: Columns of a Parquet file to copy.

    Raises:
        InputError: It is neither, or it does not have such columns.
    """
    check_is_file(path, "Give a file with a text on each line, or a Parquet file of texts.")
    with path.open("rb") as file:
        if file.read(len(PARQUET)) == PARQUET:
            return _open_parquet(path, column, keep)
    if column is not None or keep:
        raise InputError(f"{path} is not a Parquet file, so it does not have columns. Leave out --column and --keep.")
    return _open_lines(path)


def _open_lines(path: Path) -> Texts:
    places, rows = [], 0
    with path.open("rb") as file:
        place = 0
        for line in file:
            if rows % INDEXED == 0:
                places.append(place)
            place += len(line)
            rows += 1

    def read(start: int, stop: int) -> Iterator[tuple[int, Any, list[str]]]:
        with path.open("rb") as file:
            file.seek(places[start // INDEXED] if start < stop else 0)
            lines = itertools.islice(file, start % INDEXED, start % INDEXED + stop - start)
            for first in range(start, max(stop, start + 1), AT_ONCE):
                texts = [_text(path, first + i, line) for i, line in enumerate(itertools.islice(lines, AT_ONCE))]
                yield first, None, texts

    return Texts(rows, read)


def _text(path: Path, row: int, line: bytes) -> str:
    """Return a line without its end, and the first one without a byte order mark.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not a text file in UTF-8 (line {row + 1}: {error.reason}). A grafted host takes text; for a "
            "file of activations, give the folder of one of its SAEs."
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _open_parquet(path: Path, column: str | None, keep: tuple[str, ...]) -> Texts:
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    if column is None and len(texts) != 1:
        raise InputError(
            f"{path} has {len(texts)} columns of texts{': ' if texts else ''}{', '.join(texts)}. Choose the column "
            "with --column."
        )
    name = texts[0] if column is None else column
    check_columns(path, schema.names, name, keep, COLUMNS)
    if name not in texts:
        raise InputError(f"Column {name} of {path} is {schema.field(name).type}; texts are strings.")

    def kept_of(table: Any) -> Any:
        return table.select(list(keep)) if keep else None

    def read(start: int, stop: int) -> Iterator[tuple[int, Any, list[str]]]:
        for row, part in parquet_rows(file, (name, *keep), start, stop, AT_ONCE):
            if part.column(name).null_count:
                raise InputError(f"Column {name} of {path} has a null after row {row}. Fill or leave out such rows.")
            yield row, kept_of(pa.Table.from_batches([part])), part.column(name).to_pylist()
        if start == stop:
            yield start, kept_of(schema.empty_table()), []

    return Texts(file.metadata.num_rows, read)

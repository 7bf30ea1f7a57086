"""Writes a Parquet file in parts, so that the same command goes on where it stopped.

Finished parts are kept in a hidden folder beside the target, `.NAME.saeexport-parts`. They are joined when the last one
is done.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..artifact.writing import lock, replaced_file
from ..errors import InputError

PLAN = "plan.json"


def write_in_parts(
    target: Path,
    plan: Mapping[str, Any],
    rows: int,
    part: int,
    tables: Callable[[int, int], Iterator[Any]],
    overwrite: bool,
    progress: Callable[[int, int], Any],
) -> None:
    """Write a Parquet file from rows of a source, part by part.

    Args:
        target: The file to write. It appears only when it is complete.
        plan: What parts have to agree on to be joined, as JSON values. Parts of another plan are not used.
        rows: Number of rows of the source.
        part: Rows of a part. What a stop loses is less than one.
        tables: Function of the first row of a part and the one after its last, which yields one table or more, all of
            one schema.
        overwrite: Whether to replace a target that exists.
        progress: Function that is called with the number of rows done and the total.

    Raises:
        InputError: Another process is writing `target`, or it must not be written.
        OSError: The target cannot be written.
    """
    with _parts(target, json.dumps({**plan, "part": part})) as folder:
        for number, start in enumerate(range(0, max(rows, 1), part)):
            stop = min(start + part, rows)
            file_of_part = folder / f"{number:06d}.parquet"
            if file_of_part.exists():
                progress(stop, rows)
                continue
            with replaced_file(file_of_part, overwrite=False) as file:
                _write(file, tables(start, stop))
        with replaced_file(target, overwrite) as file:
            _write(file, _row_groups(sorted(folder.glob("*.parquet"))))


@contextlib.contextmanager
def _parts(target: Path, plan: str) -> Iterator[Path]:
    """Yield the folder of the parts of a target, without those of another plan, and remove it at the end."""
    folder = target.with_name(f".{target.name}.saeexport-parts")
    with contextlib.ExitStack() as locks:
        folder.mkdir(exist_ok=True)
        if lock(folder, locks) is False:
            raise InputError(f"Another process is writing {target}. Wait until it is done, or choose another file.")
        if not (folder / PLAN).exists() or (folder / PLAN).read_bytes() != plan.encode():
            for left in folder.iterdir():
                left.unlink()
            with replaced_file(folder / PLAN, overwrite=True) as file:
                file.write(plan.encode())
        try:
            yield folder
        except BaseException:
            if {left.name for left in folder.iterdir()} == {PLAN}:  # nothing that a later call could use
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _row_groups(parts: list[Path]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as opened:
            for i in range(opened.num_row_groups):
                yield opened.read_row_group(i)


def _write(file: IO[bytes], tables: Iterator[Any]) -> None:
    """Write tables of one schema, at least one, as the row groups of a Parquet file."""
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(file, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)

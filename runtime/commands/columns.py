"""The features of a file of activations as columns of a Parquet file, in bounded memory, and resumed after a stop.

Finished parts are kept in a hidden folder beside the target, `.NAME.saeexport-parts`. The same command takes them up
again after it was stopped, and joins them when the last one is done.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..arrays.arguments import as_integer
from ..arrays.tensor import Array
from ..artifact.files import identify
from ..artifact.writing import check_output_file, lock, replaced_file
from ..errors import InputError
from ..session.features import TopFeatures, import_arrow
from ..session.session import SAESession
from .sources import open_source

PART = 1 << 15
"""Tokens of a part. What a stop loses is less than one."""

FIRST_K = 64
"""Features of each token that are asked for at first, where all are wanted."""

PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What parts have to agree on to be joined.

    Attributes:
        artifact: Sha256 of the artifact's manifest.
        source: Size in bytes and time of the last change, in ns, of the file of activations.
        k: Largest number of features of a token; None for all that are on.
        column: Column of the activations in a Parquet file.
        keep: Columns of the source that are copied.
        part: Tokens of a part.
    """

    artifact: str
    source: tuple[int, int]
    k: int | None
    column: str | None
    keep: tuple[str, ...]
    part: int


def write_columns(
    session: SAESession,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    k: int | None = None,
    column: str | None = None,
    keep: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> None:
    """Write the features of the activations in `source` to `target`, a Parquet file with one row for each token.

    Its columns are those of `TopFeatures.to_arrow`: `indices`, `values`, the strongest first, and `l0`; before them
    those that are kept. The metadata of the schema, key `saeexport`, is JSON with the artifact's sha256, its hook and
    its number of features.

    Args:
        session: The SAE.
        source: A `.npy` file, as for `python -m runtime run`, or a Parquet file.
        target: The file to write. It appears only when it is complete.
        k: Largest number of features of a token; None for all that are on.
        column: Column of a Parquet file with the activations, lists of `d_in` numbers; None if only one column has
            lists.
        keep: Columns of a Parquet file to copy, such as an id.
        overwrite: Whether to replace a target that exists.
        progress: Function that is called after each batch with the number of tokens done and the total.

    Raises:
        InputError: The source does not have such activations, an argument is wrong, another process is writing
            `target`, or pyarrow is missing.
        OSError: The target cannot be written.
    """
    import_arrow()
    source, target = Path(source), Path(os.path.realpath(target))
    cfg = session.cfg
    if k is not None and not 1 <= (k := as_integer("k", k, 1)) <= cfg.d_sae:
        raise InputError(f"k is {k}; it must lie in [1, d_sae = {cfg.d_sae}].")
    check_output_file(target, overwrite)
    opened = open_source(source, session, column, keep)
    _, _, size, changed = identify(source) or (0, 0, 0, 0)
    plan = Plan(session.artifact.sha256, (size, changed), k, column, keep, PART)
    about = {"artifact_sha256": plan.artifact, "hook_name": cfg.hook_name, "d_sae": cfg.d_sae, "k": k}
    metadata = {"saeexport": json.dumps(about)}
    strongest = _Strongest(session, k)

    def tables(start: int, stop: int) -> Iterator[Any]:
        for kept, x in opened.blocks(start, stop):
            found = strongest(x).to_arrow()
            table = found if kept is None else _beside(kept, found)
            yield table.replace_schema_metadata(metadata)
            start += len(x)
            progress(start, opened.rows)

    with _parts(target, plan) as folder:
        for number, start in enumerate(range(0, max(opened.rows, 1), PART)):
            stop = min(start + PART, opened.rows)
            part = folder / f"{number:06d}.parquet"
            if part.exists():
                progress(stop, opened.rows)
                continue
            with replaced_file(part, overwrite=False) as file:
                _write(file, tables(start, stop))
        with replaced_file(target, overwrite) as file:
            _write(file, _row_groups(sorted(folder.glob("*.parquet"))))


class _Strongest:
    """The k strongest features of each token, or all that are on."""

    def __init__(self, session: SAESession, k: int | None) -> None:
        self._session, self._k = session, k
        self._enough = min(FIRST_K, session.cfg.d_sae)

    def __call__(self, x: Array) -> TopFeatures[Array]:
        if self._k is not None:
            return self._session.top_features(x, self._k)
        while True:
            found = self._session.top_features(x, self._enough)
            most = int(found.l0.max(initial=0))
            if most <= self._enough:
                return found
            self._enough = min(1 << (most - 1).bit_length(), self._session.cfg.d_sae)


def _beside(kept: Any, columns: Any) -> Any:
    import pyarrow as pa

    kept = kept if isinstance(kept, pa.Table) else pa.Table.from_batches([kept])
    return pa.Table.from_arrays([*kept.columns, *columns.columns], schema=pa.schema([*kept.schema, *columns.schema]))


@contextlib.contextmanager
def _parts(target: Path, plan: Plan) -> Iterator[Path]:
    """Yield the folder of the parts of a target, without those of another plan, and remove it at the end."""
    folder = target.with_name(f".{target.name}.saeexport-parts")
    with contextlib.ExitStack() as locks:
        folder.mkdir(exist_ok=True)
        if lock(folder, locks) is False:
            raise InputError(f"Another process is writing {target}. Wait until it is done, or choose another file.")
        text = json.dumps(dataclasses.asdict(plan))
        if not (folder / PLAN).exists() or (folder / PLAN).read_text() != text:
            for left in folder.iterdir():
                left.unlink()
            with replaced_file(folder / PLAN, overwrite=True) as file:
                file.write(text.encode())
        yield folder
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

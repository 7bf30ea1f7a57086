"""The features of a file of activations as columns of a Parquet file, in bounded memory, and resumed after a stop."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..arrays.arguments import as_integer
from ..arrays.tensor import Array
from ..artifact.files import identify
from ..artifact.manifest import SAEConfig
from ..artifact.writing import check_output_file
from ..session.features import TopFeatures, import_arrow
from ..session.session import SAESession
from .parts import write_in_parts
from .sources import check_other_file, open_source

PART = 1 << 15
"""Tokens of a part."""

FIRST_K = 64
"""Features of each token that are asked for at first, where all are wanted."""


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
        InputError: The source does not have such activations, an argument is wrong, `target` is the source, another
            process is writing it, or pyarrow is missing.
        OSError: The target cannot be written.
    """
    import_arrow()
    source, target = Path(source), Path(os.path.realpath(target))
    k = checked_k(k, session.cfg)
    check_output_file(target, overwrite)
    check_other_file(source, target)
    opened = open_source(source, session, column, keep)
    plan = {"artifact": session.artifact.sha256, "precision": session._options.precision,
            "source": version_of(source), "k": k, "column": column, "keep": keep}  # fmt: skip
    about = metadata(session.artifact.sha256, session.cfg, k)
    strongest = _Strongest(session, k)

    def tables(start: int, stop: int) -> Iterator[Any]:
        for kept, x in opened.blocks(start, stop):
            found = strongest(x).to_arrow()
            table = found if kept is None else beside(kept, found)
            yield table.replace_schema_metadata(about)
            start += len(x)
            progress(start, opened.rows)

    write_in_parts(target, plan, opened.rows, PART, tables, overwrite, progress)


def checked_k(k: Any, cfg: SAEConfig) -> int | None:
    """Return the largest number of features of a row; None for all that are on.

    Raises:
        InputError: It is not a whole number in `[1, d_sae]`.
    """
    return None if k is None else as_integer("k", k, 1, cfg.d_sae, most_is="d_sae = ")


def version_of(source: Path) -> tuple[int, int]:
    """Return the size in bytes and the time of the last change, in ns, of a file."""
    _, _, size, changed = identify(source) or (0, 0, 0, 0)
    return size, changed


def metadata(artifact: str, cfg: SAEConfig, k: int | None, **more: Any) -> dict[str, str]:
    """Return the metadata of a schema: whose features the rows have.

    Args:
        artifact: Sha256 of the artifact's manifest.
        cfg: Configuration of the SAE.
        k: Largest number of features of a row; None for all that are on.
        more: Further facts.
    """
    about = {"artifact_sha256": artifact, "hook_name": cfg.hook_name, "d_sae": cfg.d_sae, "k": k, **more}
    return {"saeexport": json.dumps(about)}


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


def beside(first: Any, then: Any) -> Any:
    """Return the columns of two tables of equally many rows as one table."""
    import pyarrow as pa

    first = first if isinstance(first, pa.Table) else pa.Table.from_batches([first])
    return pa.Table.from_arrays([*first.columns, *then.columns], schema=pa.schema([*first.schema, *then.schema]))

"""The function that every engine maps over batches of rows: activations in, features out.

`sparse_features` takes and returns Arrow tables, which Ray Data, Spark, Dask and Daft pass to functions.
"""

import functools
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runtime import SAESession

ACTIVATIONS = "activation"
SCHEMA = "token long, indices array<int>, values array<float>, l0 int, process int"
"""The columns of the result, as Spark declares them. `process` tells which process computed a row."""


@functools.cache
def open_session(artifact: str) -> SAESession:
    """Open an artifact once in a process, with one thread: the engine runs a process per core."""
    return SAESession(artifact, "cpu", threads=1)


def sparse_features(table: pa.Table, artifact: str, k: int) -> pa.Table:
    """Replace the column of activations by the features that are on, at most k for each row, the strongest first.

    Where `l0` is above k, some are left out. The order of the rows is kept.

    Args:
        table: Rows with a column of lists of `d_in` float32.
        artifact: Folder of the artifact, at this path on every machine.
        k: Largest number of features of a row.

    Raises:
        ValueError: A row is null, or does not have `d_in` numbers.
    """
    sae = open_session(artifact)
    column = table[ACTIVATIONS].combine_chunks()
    if not pc.all(pc.equal(pc.list_value_length(column), sae.cfg.d_in).fill_null(False), min_count=0).as_py():
        raise ValueError(f"Every row of {ACTIVATIONS} must have {sae.cfg.d_in} numbers; some have others, or are null.")
    x = np.asarray(column.flatten()).reshape(-1, sae.cfg.d_in)
    kept, found = table.drop_columns([ACTIVATIONS]), sae.top_features(x, k).to_arrow()
    process = pa.array(np.full(len(x), os.getpid(), np.int32))
    return pa.Table.from_arrays(
        [*kept.columns, *found.columns, process], names=[*kept.column_names, *found.column_names, "process"]
    )

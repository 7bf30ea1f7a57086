"""Runs the same job in one process, in Ray Data and in Spark: the rows must be equal, and the costs are printed.

    python -m examples.batch.check

Each engine runs on two inputs of different size. The difference of the times tells the cost of a row; what does not
depend on the rows, such as the start of workers, cancels.
"""

import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.batch.jobs import JOBS, ROWS, WORKERS
from examples.v2 import ARTIFACT, done, fail, golden_inputs
from runtime.tables import format_table

FILES, SMALL, LARGE = 8, 1 << 13, 1 << 16
REPEATS = 3


def main() -> None:
    """Run the check; an exit code other than 0 means that something is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {rows: write_input(folder / f"in-{rows}", rows) for rows in (SMALL, LARGE)}
        results, rows_of_one = [], {}
        for engine, rows in itertools.product(JOBS, (SMALL, LARGE)):
            seconds = [run(engine, sources[rows], folder / "out") for _ in range(REPEATS)]
            found = pq.read_table(folder / "out").sort_by("token")
            if engine == "alone":
                rows_of_one[rows] = found
            else:
                check_rows(engine, found, rows_of_one[rows])
            results.append((engine, rows, statistics.median(seconds)))
        print_costs(results)


def write_input(folder: Path, rows: int) -> Path:
    """Write noisy copies of the golden inputs as Parquet files."""
    draws, golden = np.random.default_rng(0), golden_inputs()
    folder.mkdir()
    for part, tokens in enumerate(np.array_split(np.arange(rows), FILES)):
        x = golden[draws.integers(0, len(golden), len(tokens))] + draws.normal(0, 0.01, (len(tokens), golden.shape[1]))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), golden.shape[1])
        table = pa.table({"token": pa.array(tokens), "activation": lists})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=ROWS)
    return folder


def run(engine: str, source: Path, target: Path) -> float:
    """Run a job and return how many seconds it took."""
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    JOBS[engine](str(ARTIFACT), str(source), str(target))
    return time.perf_counter() - start


def check_rows(engine: str, found: pa.Table, expected: pa.Table) -> None:
    """Check that an engine gave exactly the rows of one process, from several processes."""
    if not same_rows(found, expected):
        fail(f"{engine}: the rows differ from those of one process")
    if same_rows(found.slice(1), expected) or same_rows(with_one_bit_more(found), expected):
        fail(f"{engine}: the comparison does not find a row that is missing, or a value that differs by one bit")
    processes = len(set(found["process"].to_pylist()))
    if processes < WORKERS:
        fail(f"{engine}: {processes} process computed all rows")
    done(f"{engine}: {found.num_rows:,} rows, exactly those of one process, from {processes} processes")


def same_rows(found: pa.Table, expected: pa.Table) -> bool:
    """Tell whether two tables have equal rows, bit for bit; engines may mark columns as nullable."""
    columns = expected.select(["token", "indices", "values", "l0"])
    return found.select(columns.column_names).cast(columns.schema).equals(columns)


def with_one_bit_more(table: pa.Table) -> pa.Table:
    """Return a table whose very first value is the next larger float32."""
    values = table["values"].combine_chunks()
    numbers = values.flatten().to_numpy().copy()
    numbers[0] = np.nextafter(numbers[0], np.float32(np.inf))
    offsets = pa.array(np.concatenate([[0], np.cumsum(values.value_lengths())]).astype(np.int32))
    place = table.column_names.index("values")
    return table.set_column(place, "values", pa.ListArray.from_arrays(offsets, pa.array(numbers)))


def print_costs(results: list[tuple[str, int, float]]) -> None:
    """Print the time of each engine, the part that does not depend on the rows, and that of a row."""
    seconds = {(engine, rows): time for engine, rows, time in results}
    cost = {engine: (seconds[engine, LARGE] - seconds[engine, SMALL]) / (LARGE - SMALL) for engine in JOBS}
    table = [
        (engine, f"{seconds[engine, LARGE]:.1f}", f"{max(0.0, seconds[engine, SMALL] - SMALL * cost[engine]):.1f}",
         f"{cost[engine] * 1e6:.0f}", f"{cost[engine] / cost['alone']:.2f}")
        for engine in JOBS
    ]  # fmt: skip
    header = ("engine", f"s for {LARGE:,} rows", "s for none", "µs per row", "times one process")
    print(format_table(table, header=header, rule=True, right=(1, 2, 3, 4)))
    print(f"{WORKERS} processes of one thread; one process with one thread; medians of {REPEATS} runs")


if __name__ == "__main__":
    main()

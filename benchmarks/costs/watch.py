"""Measures what watched features cost: `python -m benchmarks.costs.watch` (`make bench-watch`).

Times `SAESession.watch` of m features and `encode` of all of them, in random order in one process with the same
threads, and measures the anonymous memory that each adds to a process in which ONNX Runtime already runs another graph.
Prints the times with the ratio as the median over rounds, with the quartiles in brackets, and writes
benchmarks/results/watch.json.
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report.markdown import markdown_table, ratio_cell, size_cell
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import describe_machine, parse_shape, process_memory, write_results
from benchmarks.shared.options import add_rows, add_shapes
from benchmarks.shared.saes import draw_activations, make_uniform_sae
from benchmarks.shared.timing import median, quartiles, time_in_turn
from runtime import SAESession
from runtime.arrays.tensor import Array
from saeexport import export

RESULTS = FOLDER / "watch.json"
ROUNDS = 10


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shapes(parser)
    add_rows(parser)
    parser.add_argument("--features", nargs="+", type=int, default=[1, 64, 1024], metavar="M",
                        help="number of watched features (default: 1 64 1024)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of a line of the table (default: 3)")
    options = parser.parse_args()
    lines = []
    for d_in, d_sae in map(parse_shape, options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sae"
            export(make_uniform_sae(d_in, d_sae), path, activations=draw_activations(256, d_in))
            with SAESession(path, "cpu") as session:
                for m in tqdm(options.features, desc=f"{d_in}x{d_sae}", disable=None):
                    memory = {f"{name}_bytes": in_new_process(path, ids_of(d_sae, each))
                              for name, each in (("watch", m), ("encode", None))}  # fmt: skip
                    for rows in options.rows:
                        measured = measure(session, draw_activations(rows, d_in), ids_of(d_sae, m), options.seconds)
                        lines.append({"d_in": d_in, "d_sae": d_sae, "rows": rows, "features": m, **measured, **memory})
    print(table(lines))
    machine = describe_machine(["onnxruntime", "numpy"])
    write_results(RESULTS, {**machine, "threads": os.cpu_count(), "rows": lines})


def ids_of(d_sae: int, m: int | None) -> list[int] | None:
    """Return the ids of m features, spread over all of them; None for all."""
    return None if m is None else np.linspace(0, d_sae - 1, m, dtype=np.int64).tolist()


def measure(session: SAESession, x: Array, ids: list[int] | None, seconds: float) -> dict[str, object]:
    """Return the median times in milliseconds, and the median and quartiles of their ratio."""
    calls = {"watch": functools.partial(session.watch(ids), x), "encode": functools.partial(session.encode, x)}
    times = time_in_turn(calls, ROUNDS, seconds)
    return {
        "rounds": len(times["encode"]),
        **{f"{name}_ms": median(values) for name, values in times.items()},
        "encode_over_watch": quartiles(times["encode"] / times["watch"], 3),
    }


def in_new_process(path: Path, ids: list[int] | None) -> int:
    """Return the memory that watching some features, or `encode`, adds to a process, in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(added_memory, (path, ids))


def added_memory(path: Path, ids: list[int] | None) -> int:
    """Return the anonymous memory that a first call adds to this process."""
    with SAESession(path, "cpu") as session:
        x = np.ones((1, session.cfg.d_in), np.float32)
        another = session.watch([0])
        another(x)
        before = process_memory("self", "RssAnon")
        call = session.encode if ids is None else session.watch(ids)
        call(x)
        return process_memory("self", "RssAnon") - before


def table(lines: list[dict[str, Any]]) -> str:
    """Return times, ratios and memory as a Markdown table."""
    headings = ("d_in x d_sae", "rows", "features", "`watch`, ms", "`encode`, ms", "`encode` over `watch`",
                "memory of `watch`, MB", "of `encode`, MB")  # fmt: skip
    return markdown_table(headings, [
        [size_cell(line), str(line["rows"]), str(line["features"]), f"{line['watch_ms']:.3f}",
         f"{line['encode_ms']:.2f}", ratio_cell(line["encode_over_watch"]),
         f"{line['watch_bytes'] / 1e6:.1f}", f"{line['encode_bytes'] / 1e6:.1f}"]
        for line in lines
    ])  # fmt: skip


if __name__ == "__main__":
    main()

"""Measures the memory and the time of calls that share the weights: `python -m benchmarks.costs.memory`.

Runs kinds of calls one after the other in a new process, and measures its anonymous memory after each (`Anonymous` in
/proc/self/smaps_rollup: what the process holds apart from the pages of files), with Python and its libraries. It does
so with the session's defaults (`runtime/devices/staged.py`), with graphs that are loaded whole, and without an arena.
Then it times the three in random order in one process. Prints the tables, and writes and draws
benchmarks/results/memory.json (`make bench-memory`).
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.report.markdown import markdown_table, ratio_cell, size_cell
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import describe_machine, parse_shape, write_results
from benchmarks.shared.options import SHAPES, add_rows, add_shapes
from benchmarks.shared.timing import median, quartiles, time_in_turn
from runtime import Ablate, SAESession
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE
from runtime.devices.cpu import KEPT_CALLS

RESULTS = FOLDER / "memory.json"
ROUNDS = 10
WAYS: dict[str, dict[str, Any]] = {"default": {}, "whole": {"shared_stages": False}, "without_arena": {"arena": False}}
"""Options of `SAESession` by the name of what is compared."""

ONE_TOKEN_CALLS = KEPT_CALLS + 1
LATER = f"encode(x[:1]), {ONE_TOKEN_CALLS} times"
"""The last calls whose memory is measured: what the others kept for the next call is given back meanwhile."""


def main() -> None:
    """Measure, print and write."""
    from benchmarks.shared.saes import make_workload  # only here, so that the processes that are measured do not
    from saeexport import export  # load PyTorch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shapes(parser, SHAPES[:1])
    add_rows(parser)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="duration of a line of times; 0 measures memory only (default: 3)"
    )
    options = parser.parse_args()
    memory, times = [], []
    for d_in, d_sae in map(parse_shape, options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            path, workload = Path(folder) / "sae", make_workload(d_in, d_sae)
            export(workload.sae, path, activations=workload.inputs(256))
            size = {"d_in": d_in, "d_sae": d_sae, "weights_bytes": (path / "weights.safetensors").stat().st_size}
            for rows in tqdm(options.rows, desc=f"{d_in}x{d_sae}", disable=None):
                x = workload.inputs(rows)
                found = {way: in_new_process(path, x, way) for way in WAYS}
                memory += [{**size, "rows": rows, "call": call, "bytes": found["default"][call],
                            "whole_bytes": found["whole"][call], "without_arena_bytes": found["without_arena"][call]}
                           for call in found["default"]]  # fmt: skip
                if options.seconds:
                    times += [{**size, "rows": rows, **line} for line in compare(path, x, options.seconds)]
    print(memory_table(memory), time_table(times), sep="\n\n")
    machine = describe_machine(["onnxruntime", "numpy"])
    write_results(RESULTS, {**machine, "threads": os.cpu_count(), "rows": memory, "times": times})


def calls_of(session: SAESession, x: Array) -> dict[str, Callable[[], object]]:
    """Return the kinds of calls, in the order in which their memory is measured."""
    both = [(HOOK_ACTS_PRE, lambda acts, hook: acts), (HOOK_ACTS_POST, lambda acts, hook: acts)]
    return {
        "encode": lambda: session.encode(x),
        "sae(x)": lambda: session(x),
        "run_with_cache": lambda: session.run_with_cache(x),
        "top_features": lambda: session.top_features(x, 64),
        "steer": lambda: session.steer(x, {5: Ablate()}),
        "run_with_hooks": lambda: session.run_with_hooks(x, both),
        "hook_sae_acts_pre": lambda: session.run_with_cache(x, HOOK_ACTS_PRE, return_output=False),
        "watch": functools.partial(session.compute_features, x, [1, 2, 3]),
    }


def in_new_process(path: Path, x: Array, way: str) -> dict[str, int]:
    """Return the anonymous memory of a process after it started and after each kind of call, in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_of_calls, (path, x, way))


def memory_of_calls(path: Path, x: Array, way: str) -> dict[str, int]:
    """Return the anonymous memory of this process before any call and after each kind of call, in bytes."""
    found = {"before": anonymous_memory()}
    with SAESession(path, "cpu", **WAYS[way]) as session:
        for name, call in calls_of(session, x).items():
            call()
            found[name] = anonymous_memory()
        for _ in range(ONE_TOKEN_CALLS):
            session.encode(x[:1])
        found[LATER] = anonymous_memory()
    return found


def anonymous_memory() -> int:
    """Return the anonymous memory of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def compare(path: Path, x: Array, seconds: float) -> list[dict[str, Any]]:
    """Return for each kind of call the times in milliseconds, and ratios with quartiles."""
    lines = []
    with contextlib.ExitStack() as stack:
        sessions = {way: stack.enter_context(SAESession(path, "cpu", **options)) for way, options in WAYS.items()}
        calls = {way: calls_of(session, x) for way, session in sessions.items()}
        for name in calls["default"]:
            for way in WAYS:
                calls[way][name]()
            times = time_in_turn({way: calls[way][name] for way in WAYS}, ROUNDS, seconds)
            lines.append({
                "call": name, "rounds": len(times["whole"]), **{f"{way}_ms": median(times[way]) for way in WAYS},
                "default_over_whole": quartiles(times["default"] / times["whole"], 3),
                "without_arena_over_default": quartiles(times["without_arena"] / times["default"], 3),
            })  # fmt: skip
    return lines


def memory_table(lines: list[dict[str, Any]]) -> str:
    """Return the memory as a Markdown table."""
    headings = ("d_in x d_sae", "rows", "after", "MB", "over the weights", "`shared_stages=False`", "`arena=False`")
    return markdown_table(headings, [
        [size_cell(line), str(line["rows"]), f"`{line['call']}`", f"{line['bytes'] / 1e6:.0f}",
         *(f"{line[name] / line['weights_bytes']:.2f}" for name in ("bytes", "whole_bytes", "without_arena_bytes"))]
        for line in lines
    ])  # fmt: skip


def time_table(lines: list[dict[str, Any]]) -> str:
    """Return the times as a Markdown table."""
    headings = ("d_in x d_sae", "rows", "call", "ms", "over `shared_stages=False`", "`arena=False` over this")
    return markdown_table(headings, [
        [size_cell(line), str(line["rows"]), f"`{line['call']}`", f"{line['default_ms']:.3f}",
         ratio_cell(line["default_over_whole"]), ratio_cell(line["without_arena_over_default"])]
        for line in lines
    ])  # fmt: skip


if __name__ == "__main__":
    main()

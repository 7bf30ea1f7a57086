"""Measures the memory and the time of calls that share the weights: `python -m benchmarks.costs.memory`.

Runs kinds of calls one after the other in a new process, and measures its anonymous memory after each (`Anonymous` in
/proc/self/smaps_rollup: what the process holds apart from the pages of files), with Python and its libraries. It does
so with graphs that share their stages, and with graphs that run whole (`runtime/devices/staged.py`). Then it times both
in random order in one process. Prints the tables and writes benchmarks/results/memory.json (`make bench-memory`).
"""

import argparse
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
from benchmarks.shared.timing import median, quartiles, time_in_turn
from runtime import Ablate, SAESession
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE

RESULTS = FOLDER / "memory.json"
ROUNDS = 10


def main() -> None:
    """Measure, print and write."""
    from benchmarks.shared.saes import make_workload  # only here, so that the processes that are measured do not
    from saeexport import export  # load PyTorch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["768x24576"], metavar="D_INxD_SAE",
                        help="sizes (default: 768x24576)")  # fmt: skip
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 512], metavar="N",
                        help="rows of the input (default: 1 8 64 512)")  # fmt: skip
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
                shared, whole = (in_new_process(path, x, shared_stages) for shared_stages in (True, False))
                memory += [{**size, "rows": rows, "call": call, "bytes": shared[call], "whole_bytes": whole[call]}
                           for call in shared]  # fmt: skip
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


def in_new_process(path: Path, x: Array, shared_stages: bool) -> dict[str, int]:
    """Return the anonymous memory of a process after it started and after each kind of call, in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_of_calls, (path, x, shared_stages))


def memory_of_calls(path: Path, x: Array, shared_stages: bool) -> dict[str, int]:
    """Return the anonymous memory of this process before any call and after each kind of call, in bytes."""
    found = {"before": anonymous_memory()}
    with SAESession(path, "cpu", shared_stages=shared_stages) as session:
        for name, call in calls_of(session, x).items():
            call()
            found[name] = anonymous_memory()
    return found


def anonymous_memory() -> int:
    """Return the anonymous memory of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def compare(path: Path, x: Array, seconds: float) -> list[dict[str, Any]]:
    """Return for each kind of call the times in milliseconds and the ratio, shared over whole, with quartiles."""
    lines = []
    with SAESession(path, "cpu") as one, SAESession(path, "cpu", shared_stages=False) as other:
        shared, whole = (calls_of(session, x) for session in (one, other))
        for call in (*shared.values(), *whole.values()):
            call()
        for name in shared:
            times = time_in_turn({"shared": shared[name], "whole": whole[name]}, ROUNDS, seconds)
            lines.append({
                "call": name, "rounds": len(times["whole"]), "shared_ms": median(times["shared"]),
                "whole_ms": median(times["whole"]), "shared_over_whole": quartiles(times["shared"] / times["whole"], 3),
            })  # fmt: skip
    return lines


def memory_table(lines: list[dict[str, Any]]) -> str:
    """Return the memory as a Markdown table."""
    headings = ("d_in x d_sae", "rows", "after", "MB", "over the weights", "with whole graphs, MB", "over the weights")
    return markdown_table(headings, [
        [size_cell(line), str(line["rows"]), f"`{line['call']}`",
         *(text for name in ("bytes", "whole_bytes")
           for text in (f"{line[name] / 1e6:.0f}", f"{line[name] / line['weights_bytes']:.2f}"))]
        for line in lines
    ])  # fmt: skip


def time_table(lines: list[dict[str, Any]]) -> str:
    """Return the times as a Markdown table."""
    headings = ("d_in x d_sae", "rows", "call", "shared, ms", "whole, ms", "shared over whole")
    return markdown_table(headings, [
        [size_cell(line), str(line["rows"]), f"`{line['call']}`", f"{line['shared_ms']:.3f}",
         f"{line['whole_ms']:.3f}", ratio_cell(line["shared_over_whole"])]
        for line in lines
    ])  # fmt: skip


if __name__ == "__main__":
    main()

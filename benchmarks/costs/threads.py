"""Measures what it brings to bind threads to cores: `python -m benchmarks.costs.threads` (`make bench-threads`).

Times `SAESession.top_features` with a thread for each core that the process may use: bound to the cores, as a session
binds them, and not bound, as ONNX Runtime leaves a number of threads that it is given; and with one thread. One process
calls alone, or two at once, with and without a pause after each call. Every kind has processes of its own, which take
turns in random order. Prints the times with the ratios as the median over rounds, with the quartiles in brackets, and
writes benchmarks/results/threads.json.
"""

import argparse
import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report.markdown import markdown_table, ratio_cell, size_cell
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import available_cores, describe_machine, parse_shape, write_results
from benchmarks.shared.options import add_shapes
from benchmarks.shared.saes import draw_activations, make_uniform_sae
from benchmarks.shared.timing import median, quartiles, seconds_of, take_turns
from runtime import SAESession
from runtime.arrays.tensor import Array
from runtime.devices import start
from saeexport import export

RESULTS = FOLDER / "threads.json"
BOUND, NOT_BOUND, ONE = WAYS = ("bound", "not bound", "one thread")
PROCESSES, PAUSES, ROWS = (1, 2), (0.0, 0.005), (1, 8, 64)
K = 64
TURN, REST, ROUNDS = 0.1, 0.05, 10
"""Seconds of a turn, seconds before it in which the processes of the turn before fall asleep, and number of rounds."""

state: dict[str, SAESession] = {}
"""The session of a process that makes calls."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shapes(parser, ["768x24576"])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="N", help="rows of the input")
    options = parser.parse_args()
    lines = []
    for d_in, d_sae in map(parse_shape, options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sae"
            export(make_uniform_sae(d_in, d_sae), path, activations=draw_activations(256, d_in))
            for line in measure(path, options.rows):
                lines.append({"d_in": d_in, "d_sae": d_sae, **line})
    print(table(lines))
    machine = describe_machine(["onnxruntime", "numpy"])
    write_results(RESULTS, {**machine, "threads": available_cores(), "rows": lines})


def measure(path: Path, rows: Sequence[int], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return a line for each number of processes, pause and number of rows."""
    context, lines = multiprocessing.get_context("spawn"), []
    with ExitStack() as stack:
        callers = {
            way: [stack.enter_context(context.Pool(1, open_session, (path, way))) for _ in range(max(PROCESSES))]
            for way in WAYS
        }
        for pool in itertools.chain(*callers.values()):
            pool.apply(time_calls, (1, 0.0))  # nothing is measured while one of them still starts
        cases = list(itertools.product(PROCESSES, PAUSES, rows))
        for processes, pause, count in tqdm(cases, desc="threads", disable=None):
            times = time_ways({way: pools[:processes] for way, pools in callers.items()}, pause, count, rounds)
            lines.append({
                "rows": count, "pause": pause, "processes": processes,
                "ms": {way: median(values) for way, values in times.items()},
                "over_bound": {way: quartiles(values / times[BOUND]) for way, values in times.items()},
            })  # fmt: skip
    return lines


def time_ways(callers: Mapping[str, list[Pool]], pause: float, rows: int, rounds: int) -> dict[str, Array]:
    """Return the median milliseconds of the calls of each way, one per round; its processes call at the same time."""
    times: dict[str, list[float]] = {way: [] for way in callers}
    for _, way in take_turns(callers, rounds, 0):
        time.sleep(REST)
        started = [pool.apply_async(time_calls, (rows, pause)) for pool in callers[way]]
        times[way].append(1e3 * float(np.median(np.concatenate([each.get() for each in started]))))
    return {way: np.array(values) for way, values in times.items()}


def open_session(path: Path, way: str) -> None:
    """Open the session of this process."""
    if way == NOT_BOUND:
        start.bound_cores = lambda threads: None
    state["session"] = SAESession(path, "cpu", threads=1 if way == ONE else available_cores())


def time_calls(rows: int, pause: float) -> list[float]:
    """Return the seconds of the calls of a turn, without the pauses; the first call does not count."""
    session = state["session"]
    call = functools.partial(session.top_features, draw_activations(rows, session.cfg.d_in), K)
    call()
    times, end = [], time.perf_counter() + TURN
    while not times or time.perf_counter() < end:
        times.append(seconds_of(call))
        time.sleep(pause)
    return times


def table(lines: list[dict[str, Any]]) -> str:
    """Return times and ratios as a Markdown table."""
    headings = ("d_in x d_sae", "processes", "pause, ms", "rows", "bound, ms", "not bound / bound",
                "one thread / bound")  # fmt: skip
    return markdown_table(headings, [
        [size_cell(line), str(line["processes"]), f"{1e3 * line['pause']:.0f}", str(line["rows"]),
         f"{line['ms'][BOUND]:.2f}", *(ratio_cell(line["over_bound"][way]) for way in (NOT_BOUND, ONE))]
        for line in lines
    ])  # fmt: skip


if __name__ == "__main__":
    main()

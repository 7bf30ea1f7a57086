"""Measures what an SAE costs on a CPU: `python -m benchmarks.cpu` (`make bench`).

There are three parts: `grid` times every contender in every use over sizes and numbers of rows; `sweep` compares the
session's choice of graph with the dense graph at every sparsity; `processes` measures the start, memory and size of
whole processes. The command writes benchmarks/results/speed.json and speed.png and prints the tables; `--table` prints
them again from the file. What is not measured, such as other uses or sizes, keeps the results that the file has. With
`--quick` the command writes to build/bench instead. A whole run takes about twenty minutes on a machine that does
nothing else.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.cpu.contenders.names import CONTENDERS, GRID
from benchmarks.cpu.contenders.uses import ALL_HOOKS, USES
from benchmarks.cpu.processes import measure_processes
from benchmarks.cpu.speed import Effort, measure_case, rows_of
from benchmarks.cpu.sweep import default_l0s, measure_sweep
from benchmarks.report.plot import plot
from benchmarks.report.tables import table
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import ROOT, available_cores, describe_machine, parse_shape, write_results
from benchmarks.shared.saes import L0

RESULTS = FOLDER / "speed.json"
QUICK_RESULTS = ROOT / "build" / "bench" / "speed.json"
Line = dict[str, Any]  # a line of the results, as in the JSON file
PARTS = ["grid", "sweep", "processes"]
WHOLE = {"shapes": ["768x24576", "2304x16384"], "rows": [1, 8, 64, 512, 4096], "sweep_rows": [8, 512], "seconds": 10.0,
         "rounds": 5, "runs": 7, "results": RESULTS}  # fmt: skip
QUICK = {"shapes": ["768x24576"], "rows": [1, 64], "sweep_rows": [8], "l0": [L0], "seconds": 1.0, "rounds": 3,
         "runs": 2, "results": QUICK_RESULTS}  # fmt: skip
LARGEST_LOAD = 0.1
"""The share of the processor that other programs may use before the times stop being comparable."""


def main() -> None:
    """Measure, write the results, draw the plot, print the tables."""
    options = parse_arguments()
    if options.table:
        print(table(json.loads(options.results.read_text())))
        return
    if (load := measure_load()) > LARGEST_LOAD:
        print(f"warning: Other programs use {load:.0%} of the processor; the times will not be comparable.",
              file=sys.stderr)  # fmt: skip
    effort = Effort(options.threads, options.seconds, options.rounds)
    shapes = [parse_shape(text) for text in options.shapes]
    result: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    machine = {
        **describe_machine(["torch", "onnxruntime", "numpy"]),
        **{one.library: one.version for one in CONTENDERS.values() if one.library},
        "threads": options.threads,
        "busy_before": round(load, 3),
    }
    if "grid" in options.parts:
        for line in measure_grid(shapes, options, effort):
            store(options.results, result, "grid", merge(result.get("grid", []), [line]), machine)
        plot(result["grid"], options.results.with_suffix(".png"))
    if "sweep" in options.parts:
        store(options.results, result, "sweep", measure_sparsities(shapes[0], options, effort), machine)
    if "processes" in options.parts:
        store(options.results, result, "processes", measure_processes(*shapes[0], options.runs), machine)
    print(table(result))


def measure_grid(shapes: list[tuple[int, int]], options: argparse.Namespace, effort: Effort) -> Iterator[Line]:
    """Yield a line for each size, construction, use and number of rows.

    How often features are on makes no difference to the contenders but for all hooks, so that the other uses are
    measured with realistic frequencies only.
    """
    cases = [(shape, name) for shape in shapes for name in options.frequencies or ["realistic"]]
    if not options.frequencies and not options.quick:
        cases.insert(1, (shapes[0], "uniform"))
    plans = [
        (shape, frequencies, uses)
        for shape, frequencies in cases
        if (uses := [use for use in options.uses if use == ALL_HOOKS or frequencies == "realistic"])
    ]
    rows = sorted(options.rows)
    total = sum(len(rows_of(use, rows)) for *_, uses in plans for use in uses)
    with tqdm(total=total, desc="grid", unit="line", disable=None) as bar:
        for (d_in, d_sae), frequencies, uses in plans:
            names = {use: GRID[use] for use in uses}
            for line in measure_case(d_in, d_sae, L0, frequencies, rows, names, effort):
                yield line
                bar.update()


def merge(stored: list[Line], measured: list[Line]) -> list[Line]:
    """Return the lines of the grid in order, with those that were measured in place of those that were stored."""
    lines = {case_of(line): line for line in (*stored, *measured)}
    return [lines[case] for case in sorted(lines)]


def case_of(line: Line) -> tuple[Any, ...]:
    """Return what a line of the grid is about, in the order of the tables."""
    return (list(USES).index(line["use"]), line["d_in"], line["d_sae"], line["frequencies"], line["rows"])


def store(path: Path, result: Line, part: str, measured: object, machine: Mapping[str, object]) -> None:
    """Write the results with another part, and with the machine that it was measured on."""
    result |= {part: measured, f"{part}_measured": machine}
    write_results(path, result)


def measure_sparsities(shape: tuple[int, int], options: argparse.Namespace, effort: Effort) -> list[Line]:
    """Return a line for each L0 and number of rows."""
    d_in, d_sae = shape
    l0s, rows = options.l0 or default_l0s(d_sae), sorted(options.sweep_rows)
    # Two contenders take a fraction of the time of fourteen, and small differences matter here.
    shorter = Effort(effort.threads, effort.seconds / 3, effort.rounds * 2, effort.turn, effort.rest)
    lines = measure_sweep(d_in, d_sae, l0s, rows, shorter)
    return list(tqdm(lines, total=len(l0s) * len(rows), desc="sweep", unit="line", disable=None))


def parse_arguments() -> argparse.Namespace:
    """Return the options, with the defaults of a whole or of a quick run."""
    # fmt: off
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__.splitlines()[0],
        epilog="The defaults in brackets are those of a whole run.",
    )
    parser.add_argument("--quick", action="store_true",
                        help="take one to two minutes: one size, few rows and rounds")
    parser.add_argument("--table", action="store_true", help="print the tables of stored results; measure nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS,
                        help="what to measure (default: grid sweep processes)")
    parser.add_argument("--shapes", nargs="+", metavar="D_INxD_SAE",
                        help="sizes; the other parts use the first one (default: 768x24576 2304x16384)")
    parser.add_argument("--uses", nargs="+", choices=list(USES), default=list(USES),
                        help=f"uses of the grid (default: {' '.join(USES)})")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N",
                        help="rows of the grid; 4096 only with all hooks (default: 1 8 64 512 4096)")
    parser.add_argument("--frequencies", nargs="+", choices=["realistic", "uniform"],
                        help="how SAEs are made (default: realistic, and uniform too for the first size)")
    parser.add_argument("--l0", nargs="+", type=int, metavar="N",
                        help="mean L0 of the sweep (default: eight values from 0 to d_sae)")
    parser.add_argument("--sweep-rows", nargs="+", type=int, metavar="N", help="rows of the sweep (default: 8 512)")
    parser.add_argument("--seconds", type=float, help="smallest duration of a line of the grid (default: 10)")
    parser.add_argument("--rounds", type=int, help="smallest number of rounds of a line of the grid (default: 5)")
    parser.add_argument("--runs", type=int, help="runs of each process (default: 7)")
    parser.add_argument("--threads", type=int, default=available_cores(),
                        help="threads of each contender (default: one per core)")
    parser.add_argument("--results", type=Path, metavar="FILE",
                        help="file to write or to read (default: benchmarks/results/speed.json)")
    # fmt: on
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else WHOLE).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def measure_load(seconds: float = 1.0) -> float:
    """Return the share of the processor that other programs use now; 0 where there is no /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0

    def ticks() -> tuple[int, int]:
        counts = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
        return sum(counts), counts[3] + counts[4]  # idle, and waiting for disks

    total, idle = ticks()
    time.sleep(seconds)
    later_total, later_idle = ticks()
    return 1 - (later_idle - idle) / max(later_total - total, 1)


if __name__ == "__main__":
    main()

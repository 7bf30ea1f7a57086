"""What it costs to compute an SAE with all six hooks, side by side: `python -m benchmarks.cpu` (`make bench`).

Three parts: `grid`, every contender over sizes and numbers of rows; `sweep`, the session's choice of graph beside the
dense one from no feature on to all; `processes`, start, memory and size of whole processes. Writes
benchmarks/results/speed.json and speed.png and prints the tables, which `--table` makes again from the file. A run
with `--quick` writes to build/bench instead. On a machine that does nothing else, about a quarter of an hour.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.cpu.contenders import GRID
from benchmarks.cpu.processes import measure_processes
from benchmarks.cpu.speed import Effort, measure_case
from benchmarks.cpu.sweep import l0s_of, measure_sweep
from benchmarks.report.plot import plot
from benchmarks.report.tables import table
from benchmarks.shared.machine import ROOT, cores, machine, shape_of
from benchmarks.shared.saes import L0

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
QUICK_RESULTS = ROOT / "build" / "bench" / "speed.json"
SHAPES = ["768x24576", "2304x16384"]
PARTS = ["grid", "sweep", "processes"]
QUIET = 0.1
"""The share of the cores that others may use before the times are those of another machine."""


def main() -> None:
    """Measure, write, draw, print."""
    options = parsed()
    if options.table:
        print(table(json.loads(options.results.read_text())))
        return
    if (busy := busy_share()) > QUIET:
        print(f"Others use {busy:.0%} of the processor; the times will not be comparable.", file=sys.stderr)
    effort = Effort(options.threads, options.seconds, options.rounds)
    shapes = [shape_of(text) for text in options.shapes]
    result: dict[str, Any] = {
        **machine(["torch", "onnxruntime", "numpy"]),
        "threads": options.threads,
        "busy_before": round(busy, 3),
        "grid": grid(shapes, options, effort) if "grid" in options.parts else [],
        "sweep": sweep(shapes[0], options, effort) if "sweep" in options.parts else [],
        "processes": measure_processes(*shapes[0], options.runs) if "processes" in options.parts else {},
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    if result["grid"]:
        plot(result["grid"], options.results.with_suffix(".png"))
    print(table(result))


def grid(shapes: list[tuple[int, int]], options: argparse.Namespace, effort: Effort) -> list[dict[str, object]]:
    """Return a line for each size, construction and number of rows."""
    cases = [(shape, name) for shape in shapes for name in options.frequencies or ["realistic"]]
    if not options.frequencies and not options.quick:
        cases.insert(1, (shapes[0], "uniform"))
    lines = []
    with tqdm(total=len(cases) * len(options.rows), desc="grid", unit="line", disable=None) as bar:
        for (d_in, d_sae), frequencies in cases:
            for line in measure_case(d_in, d_sae, L0, frequencies, sorted(options.rows), GRID, effort):
                lines.append(line)
                bar.update()
    return lines


def sweep(shape: tuple[int, int], options: argparse.Namespace, effort: Effort) -> list[dict[str, object]]:
    """Return a line for each number of features on and of rows."""
    d_in, d_sae = shape
    l0s, rows = options.l0 or l0s_of(d_sae), sorted(options.sweep_rows)
    # Two contenders take a fraction of the time of seven, and small differences count here.
    fewer = Effort(effort.threads, effort.seconds / 3, effort.rounds * 2, effort.turn)
    lines = measure_sweep(d_in, d_sae, l0s, rows, fewer)
    return list(tqdm(lines, total=len(l0s) * len(rows), desc="sweep", unit="line", disable=None))


def parsed() -> argparse.Namespace:
    """Return the options, with the defaults of a whole or of a quick run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one to two minutes: one size, few rows and rounds")
    parser.add_argument("--table", action="store_true", help="print the tables of stored results and measure nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shapes", nargs="+", metavar="D_INxD_SAE", help="the first is that of the other parts, too")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help="of the grid (1 8 64 512 4096)")
    parser.add_argument("--frequencies", nargs="+", choices=["realistic", "uniform"],
                        help="how SAEs are made; both for the first size, realistic for others")  # fmt: skip
    parser.add_argument("--l0", nargs="+", type=int, help="of the sweep (0 to d_sae)")
    parser.add_argument("--sweep-rows", nargs="+", type=int, metavar="N", help="of the sweep (8 512)")
    parser.add_argument("--seconds", type=float, help="for each line of the grid, at least (10)")
    parser.add_argument("--rounds", type=int, help="for each line of the grid, at least (5)")
    parser.add_argument("--runs", type=int, help="of each process (7)")
    parser.add_argument("--threads", type=int, default=cores(), help="of each contender (one per core)")
    parser.add_argument("--results", type=Path, help="the file to write or to read")
    options = parser.parse_args()
    whole = {"shapes": SHAPES, "rows": [1, 8, 64, 512, 4096], "sweep_rows": [8, 512], "seconds": 10.0, "rounds": 5,
             "runs": 7, "results": RESULTS}  # fmt: skip
    quick = {"shapes": SHAPES[:1], "rows": [1, 64], "sweep_rows": [8], "l0": [L0], "seconds": 1.0, "rounds": 3,
             "runs": 2, "results": QUICK_RESULTS}  # fmt: skip
    for name, value in (quick if options.quick else whole).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def busy_share(seconds: float = 1.0) -> float:
    """Return the share of the processor that others use now; 0 where there is no /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0

    def ticks() -> tuple[int, int]:
        numbers = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # idle, and waiting for disks

    total, idle = ticks()
    time.sleep(seconds)
    later_total, later_idle = ticks()
    return 1 - (later_idle - idle) / max(later_total - total, 1)


if __name__ == "__main__":
    main()

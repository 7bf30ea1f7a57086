"""Measures what an SAE with all six hooks costs on a GPU: `python -m benchmarks.gpu` (`make gpu`).

Compares PyTorch's original, PyTorch without the second pass, torch.compile and CUDA graphs with this project, in one
process and in random order. Each contender is checked against the float32 original before it is timed. The same run
measures the limit of the device, other ways to write the graph, and the time of each node. The command writes
benchmarks/results/gpu-NAME.json and .png and prints the tables; `--table FILE` prints them again. It stops at its time
limit and lists what it did not reach.

The artifacts are exported first, into build/gpu, which takes minutes and no GPU. A machine without transformer_lens can
measure artifacts of another machine: `--prepare FOLDER` writes them there, and `--prepared FOLDER` reads them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import Cpu, Cuda, Device
from benchmarks.gpu.measure.grid import Options, failures
from benchmarks.gpu.measure.timing import Effort
from benchmarks.gpu.prepared.artifacts import PRECISIONS, artifact_folder, fill_in_weights, weights_dtype
from benchmarks.gpu.report.tables import NOT_A_GPU, table
from benchmarks.gpu.run import PROFILED_ROWS, Plan, result_file, run
from benchmarks.shared.machine import RESULTS, ROOT, parse_shape
from runtime.arrays.dtypes import FLOAT32

BUILD = ROOT / "build" / "gpu"
WHOLE = {"shapes": ["768x24576", "2304x65536", "4096x131072"], "rows": [1, 64, 1024, 8192], "minutes": 8.0,
         "seconds": 2.0, "rounds": 5}  # fmt: skip
QUICK = {"shapes": ["768x24576"], "rows": [1, 1024], "minutes": 2.0, "seconds": 0.5, "rounds": 3}


def main() -> int:
    """Prepare, measure, write, draw and print; return 1 if a part failed or a contender computed wrong values."""
    options = parse_arguments()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    shapes = [parse_shape(text) for text in options.shapes]
    if options.prepare:
        export_missing(options.prepare, shapes, options)
        return 0
    rehearsal = options.device == "cpu"
    device = open_device(options.device)
    if rehearsal:
        print(NOT_A_GPU, file=sys.stderr)
    export_missing(options.prepared, shapes, options)
    for artifact in {artifact_folder(options.prepared, shape, weights_dtype(name)) for shape in shapes
                     for name in (FLOAT32, *options.precisions)}:  # fmt: skip
        fill_in_weights(artifact)
    target = result_file(options.results, "rehearsal" if rehearsal else device.describe()["device"])
    tuned = [(shapes[0], PROFILED_ROWS)] if options.tune else []
    grid = Options(Effort(options.seconds, options.rounds), options.compile, tuned)
    plan = Plan(options.prepared, shapes, options.precisions, options.rows, options.minutes, grid)
    with device.in_use():
        result = run(plan, device, rehearsal, target)
    print(table(result))
    draw(result, target.with_suffix(".png"))
    for failure in (found := failures(result)):
        print(f"error: {failure}", file=sys.stderr)
    return int(bool(found))


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the plot if matplotlib is installed."""
    lines = [line for line in result["grid"] if "ms" in line]
    try:
        from benchmarks.gpu.report.plot import plot
    except ImportError:
        print("The plot needs matplotlib, which is not installed. The tables have all its figures.", file=sys.stderr)
        return
    if lines:
        plot(lines, path, f"{result['device']}, {result['date']}")


def export_missing(folder: Path, shapes: list[tuple[int, int]], options: argparse.Namespace) -> None:
    """Export the artifacts that are not in the folder.

    Raises:
        SystemExit: An artifact is missing, and so is a package that an export needs.
    """
    dtypes = [FLOAT32, *map(weights_dtype, options.precisions)]
    missing = [shape for shape in shapes if not all(artifact_folder(folder, shape, dtype).exists() for dtype in dtypes)]
    if not missing:
        return
    try:
        from benchmarks.gpu.prepared.prepare import prepare
    except ImportError as error:
        sizes = " ".join(f"{d_in}x{d_sae}" for d_in, d_sae in missing)
        raise SystemExit(
            f"{folder} lacks artifacts of {sizes}, and this machine cannot export them: {error}. Export them on a "
            f"machine that has transformer_lens: python -m benchmarks.gpu --prepare FOLDER --shapes {sizes}"
        ) from None
    prepare(folder, missing, dtypes, with_weights=not options.without_weights)


def open_device(name: str) -> Device:
    """Return the GPU, or the CPU for a rehearsal.

    Raises:
        SystemExit: PyTorch does not see a GPU.
    """
    if name == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise SystemExit(
            f"PyTorch {torch.__version__} does not see an NVIDIA GPU here (it is built for CUDA {torch.version.cuda}). "
            "Run `nvidia-smi` to check whether the driver does, or rehearse with --device cpu."
        )
    return Cuda()


def parse_arguments() -> argparse.Namespace:
    """Return the options, with the defaults of a whole, a quick or a rehearsed run."""
    # fmt: off
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="where to run; cpu rehearses and gives no GPU figures (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="take two minutes: one size, few rows, no autotuning")
    parser.add_argument("--shapes", nargs="+", metavar="D_INxD_SAE",
                        help="sizes (default: 768x24576 2304x65536 4096x131072)")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help="rows (default: 1 64 1024 8192)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS,
                        help="precisions (default: all; on a CPU float32)")
    parser.add_argument("--minutes", type=float, help="time after which no new part begins (default: 8)")
    parser.add_argument("--seconds", type=float, help="smallest duration of a line of the grid (default: 2)")
    parser.add_argument("--rounds", type=int, help="smallest number of rounds of a line of the grid (default: 5)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out torch.compile")
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="do not let torch.compile autotune")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the artifacts there; measure nothing")
    parser.add_argument("--without-weights", action="store_true",
                        help="with --prepare, write kilobytes; the weights are drawn again where they are measured")
    parser.add_argument("--prepared", type=Path, default=BUILD / "artifacts", metavar="FOLDER",
                        help="folder of the artifacts (default: build/gpu/artifacts)")
    parser.add_argument("--results", type=Path, metavar="FOLDER",
                        help="folder to write to (default: benchmarks/results; build/gpu if quick or rehearsed)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of stored results")
    # fmt: on
    options = parser.parse_args()
    if options.quick:
        options.tune = False
    rehearsal = options.device == "cpu"
    defaults = {
        **(QUICK if options.quick else WHOLE),
        "precisions": [FLOAT32] if rehearsal else list(PRECISIONS),
        "results": BUILD if rehearsal or options.quick else RESULTS,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.rows = sorted(set(options.rows))
    return options


if __name__ == "__main__":
    sys.exit(main())

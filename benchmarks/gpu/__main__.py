"""What an SAE with all six hooks costs on a GPU, side by side: `python -m benchmarks.gpu` (`make gpu`).

PyTorch's original, PyTorch without the second pass, torch.compile and CUDA graphs beside this project, in one process
and in random order, each checked against the float32 original before it is timed; the limit of the device, measured in
the same run; other ways to write the graph; and where its time goes. Writes benchmarks/results/gpu-NAME.json and .png
and prints the tables, which `--table FILE` makes again. It stops when its time is up and says what it did not reach.

Artifacts are exported first, into build/gpu, which takes minutes and no GPU. Where transformer_lens is not installed
they come from elsewhere: `--prepare FOLDER` writes them, `--prepared FOLDER` takes them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import Cpu, Cuda, Device
from benchmarks.gpu.grid import Options, failures
from benchmarks.gpu.run import PROFILED_ROWS, Plan, result_file, run
from benchmarks.gpu.subjects import PRECISIONS, artifact_of, dtype_of, fill_in_weights
from benchmarks.gpu.tables import NOT_A_GPU, table
from benchmarks.gpu.timing import Effort
from benchmarks.shared.machine import ROOT, shape_of
from runtime.arrays.dtypes import FLOAT32

RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build" / "gpu"
SHAPES = ["768x24576", "2304x65536", "4096x131072"]
ROWS = [1, 64, 1024, 8192]


def main() -> int:
    """Prepare, measure, write, draw, print; return whether something broke or was wrong."""
    options = parsed()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    shapes = [shape_of(text) for text in options.shapes]
    if options.prepare:
        prepared(options.prepare, shapes, options)
        return 0
    rehearsal = options.device == "cpu"
    device = device_of(options.device)
    if rehearsal:
        print(NOT_A_GPU, file=sys.stderr)
    prepared(options.prepared, shapes, options)
    for artifact in {artifact_of(options.prepared, shape, dtype_of(name)) for shape in shapes
                     for name in (FLOAT32, *options.precisions)}:  # fmt: skip
        fill_in_weights(artifact)
    target = result_file(options.results, "rehearsal" if rehearsal else device.facts()["device"])
    target.parent.mkdir(parents=True, exist_ok=True)
    effort = Effort(options.seconds, options.rounds)
    tuned = [(shapes[0], PROFILED_ROWS)] if options.tune else []
    plan = Plan(options.prepared, shapes, options.precisions, options.rows, options.minutes,
                Options(effort, options.compile, tuned))  # fmt: skip
    with device.in_use():
        result = run(plan, device, rehearsal, target)
    print(table(result))
    draw(result, target.with_suffix(".png"))
    wrong = failures(result)
    for failure in wrong:
        print(f"error: {failure}", file=sys.stderr)
    return int(bool(wrong))


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the plot, where matplotlib is installed."""
    lines = [line for line in result["grid"] if "ms" in line]
    try:
        from benchmarks.gpu.plot import plot
    except ImportError:
        print("There is no plot without matplotlib; the tables have every figure of it.", file=sys.stderr)
        return
    if lines:
        plot(lines, path, f"{result['device']}, {result['date']}")


def prepared(folder: Path, shapes: list[tuple[int, int]], options: argparse.Namespace) -> None:
    """Export what is not in the folder.

    Raises:
        SystemExit: something is missing, and what an export needs, too.
    """
    dtypes = [FLOAT32, *map(dtype_of, options.precisions)]
    missing = [shape for shape in shapes if not all(artifact_of(folder, shape, dtype).exists() for dtype in dtypes)]
    if not missing:
        return
    try:
        from benchmarks.gpu.prepare import prepare
    except ImportError as error:
        sizes = " ".join(f"{d_in}x{d_sae}" for d_in, d_sae in missing)
        raise SystemExit(
            f"{folder} lacks artifacts of {sizes}, and this machine cannot export them: {error}. Write them on one "
            f"that has transformer_lens: python -m benchmarks.gpu --prepare FOLDER --shapes {sizes}"
        ) from None
    prepare(folder, missing, dtypes, with_weights=not options.without_weights)


def device_of(name: str) -> Device:
    """Return the GPU, or the CPU that stands in for one.

    Raises:
        SystemExit: PyTorch sees no GPU.
    """
    if name == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise SystemExit(
            f"PyTorch {torch.__version__} sees no NVIDIA GPU here (it is built for CUDA {torch.version.cuda}). Run "
            "`nvidia-smi` to see whether the driver does, or rehearse with --device cpu."
        )
    return Cuda()


def parsed() -> argparse.Namespace:
    """Return the options, with the defaults of a whole, of a quick or of a rehearsed run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu rehearses: no GPU figures")
    parser.add_argument("--quick", action="store_true", help="two minutes: one size, few rows, no autotuning")
    parser.add_argument("--shapes", nargs="+", metavar="D_INxD_SAE", help=" ".join(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help=" ".join(map(str, ROWS)))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="all; on a CPU float32")
    parser.add_argument("--minutes", type=float, help="after which nothing new is begun (8)")
    parser.add_argument("--seconds", type=float, help="for each line of the grid, at least (2)")
    parser.add_argument("--rounds", type=int, help="for each line of the grid, at least (5)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="never let torch.compile autotune")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the artifacts there, measure nothing")
    parser.add_argument("--without-weights", action="store_true", help="prepare kilobytes; weights are drawn again")
    parser.add_argument("--prepared", type=Path, default=BUILD / "artifacts", metavar="FOLDER", help="take them there")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the results are written")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of stored results")
    options = parser.parse_args()
    if options.quick:
        options.tune = False
    rehearsed = options.device == "cpu"
    whole = {"shapes": SHAPES, "rows": ROWS, "minutes": 8.0, "seconds": 2.0, "rounds": 5}
    quick = {"shapes": SHAPES[:1], "rows": [1, 1024], "minutes": 2.0, "seconds": 0.5, "rounds": 3}
    defaults = {**(quick if options.quick else whole), "precisions": [FLOAT32] if rehearsed else list(PRECISIONS),
                "results": BUILD if rehearsed or options.quick else RESULTS}  # fmt: skip
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.rows = sorted(set(options.rows))
    return options


if __name__ == "__main__":
    sys.exit(main())

"""Measures what int8 weights save and what they lose: `python -m benchmarks.losses.int8` (`make bench-int8`).

Times an artifact with float32 weights and one with int8 weights of the same SAE, in random order in one process with
the same threads, and prints the ratios of their times, each as the median over rounds with the quartiles in brackets.
The loss is measured on the real SAE in models/, on activations of its language model. Writes
benchmarks/results/int8.json.
"""

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.report.markdown import markdown_table, ratio_cell
from benchmarks.shared.machine import REAL_SAE, available_cores, describe_machine, parse_shape, write_results
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.options import add_rows
from benchmarks.shared.saes import make_workload
from benchmarks.shared.timing import median, quartiles, time_in_turn
from runtime import SAESession, read_artifact
from runtime.arrays.dtypes import FLOAT32
from runtime.arrays.tensor import Array
from runtime.artifact.manifest import INT8
from runtime.artifact.names import HOOK_INPUT, HOOK_NAMES
from runtime.parity.golden import load_golden
from saeexport import export, load

RESULTS = FOLDER / "int8.json"
ROUNDS = 6
K = 64
REQUESTS = {"hooks": "all six hooks", "encode": "`encode`", "top": f"`top_features`, k = {K}"}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="768x24576", metavar="D_INxD_SAE", help="size (default: 768x24576)")
    add_rows(parser)
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of a line of the table (default: 8)")
    options = parser.parse_args()
    d_in, d_sae = parse_shape(options.shape)
    workload = make_workload(d_in, d_sae)
    with tempfile.TemporaryDirectory() as folder:
        paths = {weights: Path(folder) / weights for weights in (FLOAT32, INT8)}
        for weights, path in paths.items():
            export(workload.sae, path, activations=workload.inputs(256), weights=weights)
        sizes = {weights: (path / "weights.safetensors").stat().st_size for weights, path in paths.items()}
        with SAESession(paths[FLOAT32], "cpu") as exact, SAESession(paths[INT8], "cpu") as rounded:
            lines = [
                {"rows": rows, **measure(exact, rounded, workload.inputs(rows), options.seconds)}
                for rows in tqdm(options.rows, disable=None)
            ]
        golden = load_golden(read_artifact(REAL_SAE)).original[HOOK_INPUT]
        real = export(load(REAL_SAE), Path(folder) / "real", activations=golden, weights=INT8).manifest.fidelity
    assert real is not None
    result = {**describe_machine(["onnxruntime", "numpy"]), "threads": available_cores(), "d_in": d_in, "d_sae": d_sae,
              "bytes": sizes, "lines": lines, "real": dataclasses.asdict(real)}  # fmt: skip
    write_results(RESULTS, result)
    print(table(result))


def measure(exact: SAESession, rounded: SAESession, x: Array, seconds: float) -> dict[str, Any]:
    """Return the median times in milliseconds and the ratios of float32 to int8, by request."""
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for weights, session in ((FLOAT32, exact), (INT8, rounded)):
        calls["hooks", weights] = functools.partial(session.compute, x, HOOK_NAMES)
        calls["encode", weights] = functools.partial(session.encode, x)
        calls["top", weights] = functools.partial(session.top_features, x, K)
    times = time_in_turn(calls, ROUNDS, seconds)
    return {
        request: {
            "float32_ms": median(times[request, FLOAT32]),
            "int8_ms": median(times[request, INT8]),
            "float32_over_int8": quartiles(times[request, FLOAT32] / times[request, INT8]),
        }
        for request in REQUESTS
    }


def table(result: dict[str, Any]) -> str:
    """Return the ratios as a Markdown table."""
    headings = ["rows", "int8, all six hooks, ms", *(f"{text}, float32 / int8" for text in REQUESTS.values())]
    return markdown_table(headings, [
        [str(line["rows"]), f"{line['hooks']['int8_ms']:.2f}",
         *(ratio_cell(line[request]["float32_over_int8"]) for request in REQUESTS)]
        for line in result["lines"]
    ])  # fmt: skip


if __name__ == "__main__":
    main()

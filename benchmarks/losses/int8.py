"""What int8 weights save, and what they lose: `python -m benchmarks.losses.int8` (`make bench-int8`).

Runs an artifact with float32 weights and one with int8 weights of the same SAE, in random order in one process with
the same threads, and prints the ratio of their times: the median over rounds, and in brackets the quartiles. What is
lost is measured on the real SAE in models/, on activations of its language model. Writes benchmarks/results/int8.json.
"""

import argparse
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.shared.machine import ROOT, cores, machine, quartiles, ratio
from benchmarks.shared.saes import subject_of
from runtime import SAESession, read_artifact
from runtime.arrays.dtypes import FLOAT32
from runtime.arrays.tensor import Array
from runtime.artifact.manifest import INT8
from runtime.artifact.names import HOOK_INPUT, HOOK_NAMES
from runtime.parity.golden import load_golden
from saeexport import export, load

RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
REAL = ROOT / "models" / "minilm-layer3"
ROWS = (1, 8, 64, 512)
K = 64
ASKS = {"hooks": "all six hooks", "encode": "`encode`", "top": f"`top_features`, k = {K}"}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="768x24576", metavar="D_INxD_SAE")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each line of the table (default 8)")
    options = parser.parse_args()
    d_in, d_sae = map(int, options.shape.split("x"))
    subject = subject_of(d_in, d_sae)
    with tempfile.TemporaryDirectory() as folder:
        paths = {weights: Path(folder) / weights for weights in (FLOAT32, INT8)}
        for weights, path in paths.items():
            export(subject.sae, path, activations=subject.inputs(256), weights=weights)
        sizes = {weights: (path / "weights.safetensors").stat().st_size for weights, path in paths.items()}
        with SAESession(paths[FLOAT32], "cpu") as exact, SAESession(paths[INT8], "cpu") as rounded:
            lines = [
                {"rows": rows, **measure(exact, rounded, subject.inputs(rows), options.seconds)}
                for rows in tqdm(options.rows, disable=None)
            ]
        golden = load_golden(read_artifact(REAL)).original[HOOK_INPUT]
        real = export(load(REAL), Path(folder) / "real", activations=golden, weights=INT8).manifest.fidelity
    assert real is not None
    result = {**machine(["onnxruntime", "numpy"]), "threads": cores(), "d_in": d_in, "d_sae": d_sae, "bytes": sizes,
              "lines": lines, "real": dataclasses.asdict(real)}  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def measure(exact: SAESession, rounded: SAESession, x: Array, seconds: float) -> dict[str, Any]:
    """Return the median times in milliseconds, and the ratios of float32 to int8, by what is asked for."""
    ways: dict[tuple[str, str], Callable[[], object]] = {}
    for weights, session in ((FLOAT32, exact), (INT8, rounded)):
        ways["hooks", weights] = functools.partial(session.compute, x, HOOK_NAMES)
        ways["encode", weights] = functools.partial(session.encode, x)
        ways["top", weights] = functools.partial(session.top_features, x, K)
    names, times = list(ways), {way: [] for way in ways}
    order, end = np.random.default_rng(0), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[names[0]]) < 8:
        for i in order.permutation(len(names)):
            start = time.perf_counter()
            ways[names[i]]()
            times[names[i]].append((time.perf_counter() - start) * 1e3)
    kept = {way: np.array(values[2:]) for way, values in times.items()}  # the first two warm up
    return {
        ask: {
            "float32_ms": round(float(np.median(kept[ask, FLOAT32])), 3),
            "int8_ms": round(float(np.median(kept[ask, INT8])), 3),
            "float32_over_int8": quartiles(kept[ask, FLOAT32] / kept[ask, INT8]),
        }
        for ask in ASKS
    }


def table(result: dict[str, Any]) -> str:
    """Return the ratios as a Markdown table."""
    heads = [f"{text}, float32 / int8" for text in ASKS.values()]
    lines = [f"| rows | int8, all six hooks, ms | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for line in result["lines"]:
        ratios = [ratio(line[ask]["float32_over_int8"]) for ask in ASKS]
        lines.append(f"| {line['rows']} | {line['hooks']['int8_ms']:.2f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

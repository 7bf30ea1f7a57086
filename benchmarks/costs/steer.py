"""What an intervention costs: `python -m benchmarks.costs.steer` (`make bench-steer`).

Runs a pass with m edits beside a clean one, on a CPU `steer.sparse.onnx` and `model.sparse.onnx`, in random order in
one process with the same threads, all six hooks fetched, and prints the ratio of their times: the median over rounds,
and in brackets the quartiles. Beside them the same edit as a hook function: the clean pass, the edit in NumPy, and the
decoder once more. Writes benchmarks/results/steer.json.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.shared.machine import ROOT, processor
from benchmarks.shared.saes import activations, sae_of
from runtime import Clamp, Intervention, SAESession
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES
from saeexport import export

RESULTS = ROOT / "benchmarks" / "results" / "steer.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["768x24576", "2304x16384"], metavar="D_INxD_SAE")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--edits", nargs="+", type=int, default=[1, 64], metavar="M")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each line of the table (default 6)")
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        d_in, d_sae = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            export(sae_of(d_in, d_sae), Path(folder) / "sae", activations=activations(256, d_in))
            with SAESession(Path(folder) / "sae", "cpu") as session:
                cases = [(tokens, m) for tokens in options.rows for m in options.edits]
                for tokens, m in tqdm(cases, desc=shape, disable=None):
                    x = activations(tokens, d_in)
                    rows.append({"d_in": d_in, "d_sae": d_sae, "rows": tokens, "edits": m,
                                 **measure(session, x, m, options.seconds)})  # fmt: skip
    print(table(rows))
    versions = {name: importlib.metadata.version(name) for name in ("onnxruntime", "numpy")}
    machine = {"date": date.today().isoformat(), "processor": processor(), "threads": os.cpu_count()}
    RESULTS.write_text(json.dumps({**machine, **versions, "python": platform.python_version(), "rows": rows}, indent=1)
                       + "\n")  # fmt: skip


def measure(session: SAESession, x: Array, m: int, seconds: float) -> dict[str, object]:
    """Return the median times in milliseconds, and the median and quartiles of their ratios to the clean pass."""
    on = np.argsort(-(session.encode(x) > 0).sum(axis=0), kind="stable")[:m]
    edits = Intervention.of(dict.fromkeys(on.tolist(), Clamp(2.0)))
    ways: dict[str, Callable[[], object]] = {
        "model": functools.partial(session.compute, x, HOOK_NAMES),
        "steer": functools.partial(session.steer, x, edits),
        "stages": functools.partial(staged, session, x, edits),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    order, end = np.random.default_rng(0), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["model"]) < 12:
        for name in order.permutation(list(ways)):
            way = ways[str(name)]
            start = time.perf_counter()
            way()
            times[str(name)].append((time.perf_counter() - start) * 1e3)
    kept = {name: np.array(values[2:]) for name, values in times.items()}  # the first two warm up
    ratios = {name: np.quantile(kept[name] / kept["model"], [0.5, 0.25, 0.75]) for name in ("steer", "stages")}
    return {
        "l0": round(float((session.encode(x) > 0).sum(axis=1).mean()), 1),
        "rounds": len(kept["model"]),
        **{f"{name}_ms": round(float(np.median(values)), 3) for name, values in kept.items()},
        **{f"{name}_over_model": [round(float(q), 3) for q in values] for name, values in ratios.items()},
    }


def staged(session: SAESession, x: Array, edits: Intervention) -> object:
    """Run the same intervention as a hook function, between the graphs."""
    with session.hooks([(HOOK_ACTS_POST, lambda acts, hook: edits(acts))]):
        return session.run_with_cache(x)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the ratios as a Markdown table."""
    lines = ["| d_in x d_sae | rows | edits | clean, ms | edited over clean | in stages over clean |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        steer, stages = ("{:.2f} ({:.2f}-{:.2f})".format(*row[f"{name}_over_model"]) for name in ("steer", "stages"))
        lines.append(f"| {row['d_in']} x {row['d_sae']} | {row['rows']} | {row['edits']} | {row['model_ms']:.2f} "
                     f"| {steer} | {stages} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()

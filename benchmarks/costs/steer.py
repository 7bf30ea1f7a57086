"""Measures what an intervention costs: `python -m benchmarks.costs.steer` (`make bench-steer`).

Times a pass with m edits and a clean pass, on a CPU `steer.sparse.onnx` and `model.sparse.onnx`, in random order in one
process with the same threads, with all six hooks fetched. Also times the same edits in a hook function: the clean pass,
the edit in NumPy, and the decoder once more. Prints the ratios of their times, each as the median over rounds with the
quartiles in brackets, and writes benchmarks/results/steer.json.
"""

import argparse
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report.markdown import markdown_table, ratio_cell, size_cell
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import describe_machine, parse_shape, write_results
from benchmarks.shared.options import add_rows, add_shapes
from benchmarks.shared.saes import draw_activations, make_uniform_sae
from benchmarks.shared.timing import median, quartiles, time_in_turn
from runtime import Clamp, Intervention, SAESession
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES
from saeexport import export

RESULTS = FOLDER / "steer.json"
ROUNDS = 10


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shapes(parser)
    add_rows(parser)
    parser.add_argument("--edits", nargs="+", type=int, default=[1, 64], metavar="M",
                        help="number of edited features (default: 1 64)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=6.0, help="duration of a line of the table (default: 6)")
    options = parser.parse_args()
    lines = []
    for d_in, d_sae in map(parse_shape, options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            export(make_uniform_sae(d_in, d_sae), Path(folder) / "sae", activations=draw_activations(256, d_in))
            with SAESession(Path(folder) / "sae", "cpu") as session:
                cases = [(rows, m) for rows in options.rows for m in options.edits]
                for rows, m in tqdm(cases, desc=f"{d_in}x{d_sae}", disable=None):
                    measured = measure(session, draw_activations(rows, d_in), m, options.seconds)
                    lines.append({"d_in": d_in, "d_sae": d_sae, "rows": rows, "edits": m, **measured})
    print(table(lines))
    machine = describe_machine(["onnxruntime", "numpy"])
    write_results(RESULTS, {**machine, "threads": os.cpu_count(), "rows": lines})


def measure(session: SAESession, x: Array, m: int, seconds: float) -> dict[str, object]:
    """Return the median times in milliseconds, and the median and quartiles of their ratios to the clean pass."""
    on = np.asarray(session.encode(x)) > 0
    features = np.argsort(-on.sum(axis=0), kind="stable")[:m]
    edits = Intervention.of(dict.fromkeys(features.tolist(), Clamp(2.0)))
    times = time_in_turn(
        {
            "model": functools.partial(session.compute, x, HOOK_NAMES),
            "steer": functools.partial(session.steer, x, edits),
            "stages": functools.partial(steer_by_hook, session, x, edits),
        },
        ROUNDS,
        seconds,
    )
    return {
        "l0": round(float(on.sum(axis=1).mean()), 1),
        "rounds": len(times["model"]),
        **{f"{name}_ms": median(values) for name, values in times.items()},
        **{f"{name}_over_model": quartiles(times[name] / times["model"], 3) for name in ("steer", "stages")},
    }


def steer_by_hook(session: SAESession, x: Array, edits: Intervention) -> object:
    """Run the same intervention as a hook function, between the graphs."""
    with session.hooks([(HOOK_ACTS_POST, lambda acts, hook: edits(acts))]):
        return session.run_with_cache(x)


def table(lines: list[dict[str, Any]]) -> str:
    """Return the ratios as a Markdown table."""
    headings = ("d_in x d_sae", "rows", "edits", "clean, ms", "edited over clean", "in stages over clean")
    return markdown_table(headings, [
        [size_cell(line), str(line["rows"]), str(line["edits"]), f"{line['model_ms']:.2f}",
         ratio_cell(line["steer_over_model"]), ratio_cell(line["stages_over_model"])]
        for line in lines
    ])  # fmt: skip


if __name__ == "__main__":
    main()

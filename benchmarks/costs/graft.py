"""Measures what grafted hosts cost: `python -m benchmarks.costs.graft` (`make bench-graft`).

Exports MiniLM with the SAE of models/minilm-layer3 grafted into it, and times its graphs against the host alone and
against two sessions, that of the host and `SAESession` on the activations at the hook. One thread of a CPU, CPU time,
median. The variants alternate, so that other processes slow all of them. Writes benchmarks/results/graft.json.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.report.markdown import markdown_table
from benchmarks.shared.machine import REAL_SAE, ROOT, describe_machine, write_results
from benchmarks.shared.machine import RESULTS as FOLDER
from runtime import SAESession
from saeexport import graft

RESULTS = FOLDER / "graft.json"
LENGTH, VOCABULARY, REPEATS = 128, 30000, 7
BATCHES = (1, 8, 64)
ENCODE_MARGIN = 1.15
ACTS = ["hook_sae_acts_post"]


def main() -> None:
    """Graft, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="numbers of sequences")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "models" / "minilm"))
    from encoder import model_folder

    with tempfile.TemporaryDirectory() as temporary:
        whole, features = Path(temporary) / "whole", Path(temporary) / "acts"
        graft(f"hf:{model_folder()}", [REAL_SAE], whole)
        graft(f"hf:{model_folder()}", [REAL_SAE], features, modes=["tap"], hooks=ACTS)
        rows = [measure(whole, features, batch) for batch in options.batches]
    result = {**describe_machine(["onnxruntime", "numpy"]), "threads": 1, "tokens": LENGTH, "rows": rows}
    write_results(RESULTS, result)
    print(table(result))


def measure(whole: Path, features: Path, batch: int) -> dict[str, Any]:
    """Return the CPU times in milliseconds of every variant on a batch of full sequences."""
    draws = np.random.default_rng(0)
    ids = draws.integers(1000, VOCABULARY, (batch, LENGTH))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    graphs = {name: load(whole / f"{name}.onnx") for name in ("tap", "splice", "features", "stage.0", "stage.1")}
    graphs["tap of acts_post"] = load(features / "tap.onnx")
    hook = graphs["stage.0"].get_outputs()[0].name

    def run(name: str) -> Callable[[], Any]:
        taken = {value.name for value in graphs[name].get_inputs()} & set(feeds)
        given = {key: feeds[key] for key in taken}
        return lambda: graphs[name].run(None, given)

    with SAESession(REAL_SAE, "cpu", threads=1) as sae:
        names = [value.name for value in graphs["stage.0"].get_outputs()]
        between = dict(zip(names, run("stage.0")(), strict=True))
        x = between[hook].reshape(-1, between[hook].shape[-1])
        rest = {value.name: between[value.name] for value in graphs["stage.1"].get_inputs() if value.name in between}
        rest |= {value.name: feeds[value.name] for value in graphs["stage.1"].get_inputs() if value.name in feeds}
        times = alternate({
            "head": run("stage.0"), "rest": lambda: graphs["stage.1"].run(None, rest),
            "encode": lambda: sae.encode(x), "hooks": lambda: sae.run_with_cache(x), "output": lambda: sae(x),
            "features": run("features"), "tap": run("tap"), "tap of acts_post": run("tap of acts_post"),
            "splice": run("splice"),
        })  # fmt: skip
    return {"sequences": batch, **{name: round(value, 2) for name, value in times.items()}}


def load(path: Path) -> ort.InferenceSession:
    """Load a model for one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def alternate(variants: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median CPU time of each variant in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(REPEATS + 1):
        for name, variant in variants.items():
            start = time.process_time()
            variant()
            if repeat:  # the first one allocates memory
                times[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Return each graph's time relative to what it is to be held against."""
    host = row["head"] + row["rest"]
    return {
        "features": row["features"] / (row["head"] + ENCODE_MARGIN * row["encode"]),
        "tap of acts_post": row["tap of acts_post"] / (host + row["encode"]),
        "tap": row["tap"] / (host + row["hooks"]),
        "splice": row["splice"] / (host + row["output"]),
    }


def table(result: dict[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    headings = ("sequences", "host", "up to the hook", "SAE: encode", "features", "tap of acts_post", "tap", "splice")
    rows = []
    for row in result["rows"]:
        held = ratios(row)
        cells = [f"{row[name]:.0f} ms ({held[name]:.2f})" for name in ("features", "tap of acts_post", "tap", "splice")]
        parts = (row["head"] + row["rest"], row["head"], row["encode"])
        rows.append([str(row["sequences"]), *(f"{value:.1f} ms" for value in parts), *cells])
    return markdown_table(headings, rows)


if __name__ == "__main__":
    main()

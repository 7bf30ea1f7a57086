"""Measures what an export costs in time and memory: `python -m benchmarks.costs.export` (`make bench-export`).

Writes checkpoints with random weights, HookedSAE state dicts as wide as Gemma Scope's, then loads and exports each
in another process and samples that process: wall time, the peak of its own memory (anonymous pages), and the peak of
resident memory, which includes the pages of the mapped weights. Writes benchmarks/results/export.json. Needs /proc,
which only Linux has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.markdown import markdown_table, size_cell
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import describe_machine, parse_shape, process_memory, write_results
from benchmarks.shared.options import add_shapes
from runtime.artifact.tensorfile import TensorWriter

RESULTS = FOLDER / "export.json"
SHAPES = ("2304x16384", "2304x65536", "16x65536", "16x262144", "16x1048576", "64x1048576")
"""Gemma Scope 2B's 16k and 65k, and up to its largest number of features in narrow SAEs, whose weights fit anywhere."""
EXPORT = "import sys; from saeexport import export, load; export(load(sys.argv[1]), sys.argv[2])"
IMPORT = "import saeexport"


def main() -> None:
    """Write the checkpoints, export them, write and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shapes(parser, SHAPES)
    options = parser.parse_args()
    rows = []
    imports = run_and_watch([sys.executable, "-c", IMPORT])
    for d_in, d_sae in map(parse_shape, options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "sae.safetensors"
            write_checkpoint(checkpoint, d_in, d_sae)
            weights = checkpoint.stat().st_size
            seen = run_and_watch([sys.executable, "-c", EXPORT, str(checkpoint), str(Path(folder) / "artifact")])
        rows.append({"d_in": d_in, "d_sae": d_sae, "weights": weights, **seen})
    machine = describe_machine(["torch", "onnxruntime", "numpy"])
    result = {**machine, "threads": os.cpu_count(), "imports_alone": imports, "rows": rows}
    write_results(RESULTS, result)
    print(table(result))


def write_checkpoint(path: Path, d_in: int, d_sae: int) -> None:
    """Write random weights with about 1 % of the features on, block by block, and a config beside them."""
    draws = np.random.default_rng(0)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    with path.open("wb") as file:
        writer = TensorWriter(file, {name: (shape, np.dtype("float32")) for name, shape in shapes.items()})
        for name, shape in shapes.items():
            for start in range(0, shape[0], 256):
                block = draws.standard_normal((min(256, shape[0] - start), *shape[1:])).astype(np.float32)
                writer.write(name, start, block * np.float32(d_in**-0.5) - (2.3 if name == "b_enc" else 0))
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "blocks.0.hook_resid_post"}
    path.with_suffix(".json").write_text(json.dumps(config))


def run_and_watch(command: list[str]) -> dict[str, float]:
    """Run a command; return its time in seconds and its memory in bytes, sampled every 20 ms."""
    start, own, resident = time.perf_counter(), 0, 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        own = max(own, process_memory(process.pid, "RssAnon"))
        resident = max(resident, process_memory(process.pid, "VmHWM"))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}.")
    return {"seconds": round(time.perf_counter() - start, 1), "own_bytes": own, "resident_bytes": resident}


def table(result: dict[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    headings = ("d_in x d_sae", "weights", "seconds", "own memory", "over the weights", "resident")
    base = result["imports_alone"]
    rows = [["(imports alone)", "", f"{base['seconds']:.0f}", gigabytes(base["own_bytes"]), "",
             gigabytes(base["resident_bytes"])]]  # fmt: skip
    rows += [[size_cell(row), gigabytes(row["weights"]), f"{row['seconds']:.0f}", gigabytes(row["own_bytes"]),
              f"{row['own_bytes'] / row['weights']:.2f}", gigabytes(row["resident_bytes"])]
             for row in result["rows"]]  # fmt: skip
    return markdown_table(headings, rows)


def gigabytes(count: float) -> str:
    """Return a number of bytes in GB."""
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    main()

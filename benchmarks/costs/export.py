"""What an export costs in time and memory: `python -m benchmarks.costs.export` (`make bench-export`).

Writes a checkpoint of random weights, a HookedSAE state dict of the size of Gemma Scope 2B's 65k, then loads and
exports it in a process of its own, watched from outside: wall time, the most memory that it had for itself (anonymous
pages), and the most that was resident, which counts the pages of the mapped weights too. Writes
benchmarks/results/export.json. Linux only, where /proc tells it.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared.machine import ROOT, processor
from runtime.artifact.tensorfile import TensorWriter

RESULTS = ROOT / "benchmarks" / "results" / "export.json"
EXPORT = "import sys; from saeexport import export, load; export(load(sys.argv[1]), sys.argv[2])"
IMPORT = "import saeexport"


def main() -> None:
    """Write the checkpoint, export it, write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["2304x16384", "2304x65536"], metavar="D_INxD_SAE")
    options = parser.parse_args()
    rows = []
    imports = watched([sys.executable, "-c", IMPORT])
    for shape in options.shapes:
        d_in, d_sae = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "sae.safetensors"
            write_checkpoint(checkpoint, d_in, d_sae)
            weights = checkpoint.stat().st_size
            seen = watched([sys.executable, "-c", EXPORT, str(checkpoint), str(Path(folder) / "artifact")])
        rows.append({"d_in": d_in, "d_sae": d_sae, "weights": weights, **seen})
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "numpy")}
    machine = {"date": date.today().isoformat(), "processor": processor(), "threads": os.cpu_count(), **versions}
    result = {**machine, "python": platform.python_version(), "imports_alone": imports, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def write_checkpoint(path: Path, d_in: int, d_sae: int) -> None:
    """Write random weights with about 1 % of the features on, a block at a time, and the config beside them."""
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


def watched(command: list[str]) -> dict[str, float]:
    """Run a command and return its time in seconds and its memory in bytes, sampled every 20 ms."""
    start, own, resident = time.perf_counter(), 0, 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        fields = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "kB" in line}
        own = max(own, int(fields.get("RssAnon", 0)) * 1024)
        resident = max(resident, int(fields.get("VmHWM", 0)) * 1024)
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"{command[-1]} failed")
    return {"seconds": round(time.perf_counter() - start, 1), "own_bytes": own, "resident_bytes": resident}


def table(result: dict[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    lines = ["| d_in x d_sae | weights | seconds | own memory | over the weights | resident |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    base = result["imports_alone"]
    lines.append(f"| (imports alone) | | {base['seconds']:.0f} | {base['own_bytes'] / 1e9:.2f} GB | "
                 f"| {base['resident_bytes'] / 1e9:.2f} GB |")  # fmt: skip
    for row in result["rows"]:
        lines.append(f"| {row['d_in']} x {row['d_sae']} | {row['weights'] / 1e9:.2f} GB | {row['seconds']:.0f} "
                     f"| {row['own_bytes'] / 1e9:.2f} GB | {row['own_bytes'] / row['weights']:.2f} "
                     f"| {row['resident_bytes'] / 1e9:.2f} GB |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()

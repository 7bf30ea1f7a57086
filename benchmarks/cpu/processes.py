"""Whole processes: the time from their start to a first result, their memory, and what they need installed.

Each way is a short program that reads an artifact and inputs, computes all six hooks once, reports it, and then reports
its peak memory. The PyTorch programs load the artifact's weights in the fastest way: the file is mapped, and no random
weights are drawn before. Every library has its default settings. Each program runs once before it counts, so that the
files are in the page cache, and the bytecode of all modules in a folder: an installed package has it, a checkout may
not.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.cpu.contenders.cases import ARTIFACT, input_file
from benchmarks.cpu.prepare import write_case
from benchmarks.shared.installed import installed_size
from benchmarks.shared.machine import ROOT
from benchmarks.shared.saes import make_workload
from benchmarks.shared.timing import quartiles

ROWS = (1, 512)  # the time is measured with the first, the memory with both
THIS = "runtime"

RUNTIME = """
import sys
import numpy
from runtime import SAESession
x = numpy.load(sys.argv[2])
sae = SAESession(sys.argv[1], "cpu"{options})
output, cache = sae.run_with_cache(x)
"""

# The packages are replaced by empty ones, so that only the class and PyTorch are imported, and not the exporter.
HOOKED_SAE = """
import sys, types
for name in ("saeexport", "runtime"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name]
import json, numpy, torch
from safetensors.torch import load_file
from saeexport.original.hooked_sae import HookedSAE
x = torch.from_numpy(numpy.load(sys.argv[2]))
config = json.load(open(sys.argv[1] + "/sae.json"))["sae"]
keys = ("d_in", "d_sae", "hook_name", "use_error_term")
sae = HookedSAE({key: config[key] for key in keys} | {"device": "meta"})
sae.load_state_dict(load_file(sys.argv[1] + "/weights.safetensors"), assign=True)
with torch.inference_mode():
    output, cache = sae.run_with_cache(x)
"""

PLAIN_TORCH = """
import sys
import numpy, torch
from safetensors.torch import load_file
x = torch.from_numpy(numpy.load(sys.argv[2]))
w = load_file(sys.argv[1] + "/weights.safetensors")
with torch.inference_mode():
    acts_pre = torch.addmm(w["b_enc"], x - w["b_dec"], w["W_enc"])
    acts_post = torch.relu(acts_pre)
    recons = torch.addmm(w["b_dec"], acts_post, w["W_dec"])
    error = x - recons
    output = recons + error
"""

PEAK = """
print("first result", flush=True)
try:
    lines = open("/proc/self/status").read().splitlines()
except OSError:
    lines = []
print(next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0))
"""


@dataclass(frozen=True)
class Process:
    """A way to run the artifact.

    Attributes:
        title: Name in the table.
        program: Text of the program; its arguments are the artifact and the file of inputs.
        roots: The distributions that it imports.
    """

    title: str
    program: str
    roots: tuple[str, ...]


TORCH_ROOTS = ("torch", "transformer_lens", "einops", "safetensors")
PROCESSES = {
    "hooked_sae": Process("PyTorch, HookedSAE", HOOKED_SAE, TORCH_ROOTS),
    "plain_torch": Process("PyTorch, its equations alone", PLAIN_TORCH, ("torch", "numpy", "safetensors")),
    THIS: Process("this project", RUNTIME.format(options=""), ("numpy", "onnxruntime", "safetensors")),
    "runtime_unchecked": Process(
        "this project, `check_integrity=False`",
        RUNTIME.format(options=", check_integrity=False"),
        ("numpy", "onnxruntime", "safetensors"),
    ),
}


def measure_processes(d_in: int, d_sae: int, runs: int) -> dict[str, object]:
    """Return each way's seconds, bytes of memory and bytes to install, for an SAE of this size."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_case(folder, make_workload(d_in, d_sae), ROWS, {})
        turns = [(name, rows) for name in PROCESSES for rows in ROWS]
        seen: dict[tuple[str, int], list[tuple[float, int]]] = {turn: [] for turn in turns}
        order = np.random.default_rng(0)
        for i in tqdm(range(runs + 1), desc="processes", unit="round", disable=None):
            for index in order.permutation(len(turns)):
                name, rows = turns[index]
                once = run_program(
                    PROCESSES[name].program, folder / ARTIFACT, input_file(folder, rows), folder / "bytecode"
                )
                if i:
                    seen[name, rows].append(once)
        weights = sum(file.stat().st_size for file in (folder / ARTIFACT).glob("weights.*"))
    first = {name: np.array([seconds for seconds, _ in seen[name, ROWS[0]]]) for name in PROCESSES}
    ways = {
        name: {
            "seconds": quartiles(first[name]),
            "over_this": quartiles(first[name] / first[THIS]),
            "resident_bytes": {str(rows): float(np.median([peak for _, peak in seen[name, rows]])) for rows in ROWS},
            "install": installed_size([installed_distribution(root) for root in process.roots]),
        }
        for name, process in PROCESSES.items()
    }
    return {"d_in": d_in, "d_sae": d_sae, "weights_bytes": weights, "runs": runs, "ways": ways}


def run_program(program: str, artifact: Path, inputs: Path, bytecode: Path) -> tuple[float, int]:
    """Run a program once; return the seconds from its start to its first result, and its peak memory in bytes.

    Python reads and writes bytecode in the folder `bytecode`.

    Raises:
        RuntimeError: The program failed; the message ends with what it printed.
    """
    command = [sys.executable, "-c", program + PEAK, str(artifact), str(inputs)]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        peak = process.stdout.read()
        if process.wait() or line.strip() != "first result":
            log.seek(0)
            raise RuntimeError(f"A program of the comparison failed:\n{log.read()[-2000:]}")
    return seconds, int(peak)


def installed_distribution(root: str) -> str:
    """Return the installed distribution of a root: ONNX Runtime for GPUs has another name."""
    try:
        importlib.metadata.distribution(root)
    except importlib.metadata.PackageNotFoundError:
        return f"{root}-gpu"
    return root

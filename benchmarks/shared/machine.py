"""The machine, for files of results; the memory of a process; and the files themselves."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
REAL_SAE = ROOT / "models" / "minilm-layer3"


def processor_name() -> str:
    """Return the processor's model name, or its architecture if the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not have it
        return os.cpu_count() or 1


def describe_machine(packages: Sequence[str]) -> dict[str, object]:
    """Return the date, the processor, and the versions of Python and of `packages`."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"date": date.today().isoformat(), "processor": processor_name(),
            "python": platform.python_version(), **versions}  # fmt: skip


def process_memory(process: int | str, field: str) -> int:
    """Return a field of a process in bytes; 0 without /proc, or if the process has ended.

    Args:
        process: Process ID, or "self".
        field: A name in /proc/PID/status, such as `VmHWM`, the peak of resident memory.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def parse_shape(text: str) -> tuple[int, int]:
    """Return (d_in, d_sae) of a text such as "768x24576"."""
    d_in, d_sae = text.split("x")
    return int(d_in), int(d_sae)


def write_results(path: Path, result: Mapping[str, object]) -> None:
    """Write a file of results as JSON; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")

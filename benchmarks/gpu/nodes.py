"""Where the time of `model.onnx` goes: by node, and on a GPU by kernel.

ONNX Runtime's profiler measures on the host. For CUDA that is how long a node takes to be queued, not to be computed;
only a build of its own with CUPTI has the kernels. PyTorch's profiler has CUPTI too and sees every kernel of the
process, whoever started it.
"""

import collections
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType

from benchmarks.gpu.agreement import precision
from benchmarks.gpu.candidates import raw_session
from benchmarks.gpu.device import Cuda, Device
from benchmarks.gpu.subjects import artifact_of, draw_inputs, dtype_of, load_weights
from runtime.arrays.dtypes import DTYPES
from runtime.artifact.contracts import MODEL
from runtime.artifact.names import HOOK_INPUT, INPUT

RUNS = 10


def measure_nodes(folder: Path, shape: tuple[int, int], name: str, rows: int, device: Device) -> dict[str, Any]:
    """Return the milliseconds per run of each node on the host and of each kernel on the GPU, the slowest first."""
    artifact = artifact_of(folder, shape, dtype_of(name))
    (x,) = draw_inputs(load_weights(artifact, device.torch), rows, 1)
    with tempfile.TemporaryDirectory() as temporary, precision(name):
        session = raw_session(artifact / f"{MODEL}.onnx", device, name, Path(temporary) / "profile")
        binding, where = session.io_binding(), (device.torch.type, device.torch.index or 0)
        binding.bind_input(INPUT, *where, DTYPES[dtype_of(name)].onnx, list(x.shape), x.data_ptr())
        for output in session.get_outputs():
            if output.name != HOOK_INPUT:
                binding.bind_output(output.name, *where)
        session.run_with_iobinding(binding)  # the first run also finds memory and kernels
        kernels: dict[str, float] = {}
        if isinstance(device, Cuda):
            kernels = kernel_times(lambda: session.run_with_iobinding(binding))
        for _ in range(RUNS):
            session.run_with_iobinding(binding)
        nodes = node_times(json.loads(Path(session.end_profiling()).read_text()), RUNS)
    return {"d_in": shape[0], "d_sae": shape[1], "precision": name, "rows": rows, "nodes": nodes, "kernels": kernels}


def node_times(events: list[dict[str, Any]], runs: int) -> dict[str, float]:
    """Return the median milliseconds of each node over the last `runs` runs of ONNX Runtime's profile."""
    took: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            took[f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"].append(event["dur"])
    return _slowest_first({name: float(np.median(times[-runs:])) / 1e3 for name, times in took.items()})


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Return the mean milliseconds of each kernel in a run, as PyTorch's profiler sees them."""
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(RUNS):
            run()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    return _slowest_first({event.key: event.self_device_time_total / 1e3 / RUNS for event in events})


def _slowest_first(times: dict[str, float]) -> dict[str, float]:
    return {name: round(time, 5) for name, time in sorted(times.items(), key=lambda item: -item[1])}

"""Measures the time of each node of `model.onnx`, and on a GPU of each kernel.

ONNX Runtime's profiler measures on the host. For CUDA, that is the time to queue a node, not to compute it; only
special builds with CUPTI see the kernels. PyTorch's profiler has CUPTI and sees every kernel of the process, whichever
library launched it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from benchmarks.gpu.contenders.agreement import precision
from benchmarks.gpu.device import Cuda, Device
from benchmarks.gpu.measure.candidates import open_session
from benchmarks.gpu.prepared.artifacts import artifact_folder, draw_inputs, load_weights, weights_dtype
from benchmarks.shared.node_times import read_profile
from runtime.arrays.dtypes import DTYPES
from runtime.artifact.contracts import MODEL
from runtime.artifact.names import HOOK_INPUT, INPUT

RUNS = 10


def measure_nodes(folder: Path, shape: tuple[int, int], name: str, rows: int, device: Device) -> dict[str, Any]:
    """Return the milliseconds per run of each node on the host and of each kernel on the GPU, the slowest first."""
    artifact = artifact_folder(folder, shape, weights_dtype(name))
    (x,) = draw_inputs(load_weights(artifact, device.torch), rows, 1)
    with tempfile.TemporaryDirectory() as temporary, precision(name):
        session = open_session(artifact / f"{MODEL}.onnx", device, name, Path(temporary) / "profile")
        binding, where = session.io_binding(), (device.torch.type, device.torch.index or 0)
        binding.bind_input(INPUT, *where, DTYPES[weights_dtype(name)].onnx, list(x.shape), x.data_ptr())
        for output in session.get_outputs():
            if output.name != HOOK_INPUT:
                binding.bind_output(output.name, *where)
        session.run_with_iobinding(binding)  # the first run also allocates memory and chooses kernels
        kernels: dict[str, float] = {}
        if isinstance(device, Cuda):
            kernels = kernel_times(lambda: session.run_with_iobinding(binding))
        for _ in range(RUNS):
            session.run_with_iobinding(binding)
        nodes = median_times(read_profile(Path(session.end_profiling())), RUNS)
    return {"d_in": shape[0], "d_sae": shape[1], "precision": name, "rows": rows, "nodes": nodes, "kernels": kernels}


def median_times(times: dict[str, list[float]], runs: int) -> dict[str, float]:
    """Return the median of each node over the last `runs` runs."""
    return _slowest_first({name: float(np.median(calls[-runs:])) for name, calls in times.items()})


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Return the mean milliseconds of each kernel in a run, from PyTorch's profiler."""
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(RUNS):
            run()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    return _slowest_first({event.key: event.self_device_time_total / 1e3 / RUNS for event in events})


def _slowest_first(times: dict[str, float]) -> dict[str, float]:
    return {name: round(time, 5) for name, time in sorted(times.items(), key=lambda item: -item[1])}

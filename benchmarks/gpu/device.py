"""The device that is measured: its clock, its facts and its state. The CPU stands in for a GPU in rehearsals."""

import contextlib
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch

from benchmarks.shared.machine import processor

Call = Callable[[], object]

AHEAD = 3_000_000
"""Cycles that a GPU waits before a call is timed, about 2 ms: so long the host may take to queue it, and the time
between two events is that of the device alone."""

STATE = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit", "pstate",
         "utilization.gpu", "memory.used")  # fmt: skip


class Device(Protocol):
    """What a measurement asks of a device.

    Attributes:
        torch: as PyTorch calls it.
        copied_bytes: the size of a large copy.
        product_sizes: of the square products whose rates are compared.
    """

    torch: torch.device
    copied_bytes: int
    product_sizes: tuple[int, ...]

    def in_use(self) -> AbstractContextManager[object]:
        """Return the context in which everything runs."""

    def queued(self, call: Call) -> float:
        """Return the milliseconds that the device takes for a call which is already queued when it begins."""

    def awaited(self, call: Call) -> float:
        """Return the milliseconds of the host's clock from a call, on an idle device, until its results are ready."""

    def free_bytes(self) -> int:
        """Return how much memory is free."""

    def forget(self) -> None:
        """Give memory back that is kept for later."""

    def facts(self) -> dict[str, Any]:
        """Return what it is, and the versions of what runs on it."""

    def state(self) -> dict[str, str]:
        """Return its clocks, temperature and power now."""


class Cuda:
    """An NVIDIA GPU. Its settings are read and never changed."""

    product_sizes: tuple[int, ...] = (4096, 8192, 16384)
    copied_bytes = 1 << 30

    def __init__(self, index: int = 0) -> None:
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)
        # Not the default stream, which no CUDA graph can be captured on.
        self.stream = torch.cuda.Stream(self.torch)
        self._properties = torch.cuda.get_device_properties(self.torch)
        # Written before each call, so that its weights are not in the cache, where the language model would have
        # driven them out.
        cache = getattr(self._properties, "L2_cache_size", 1 << 26)
        self._flushed = torch.empty(4 * cache, dtype=torch.uint8, device=self.torch)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def in_use(self) -> AbstractContextManager[object]:
        """Return the context of a stream of its own."""
        return torch.cuda.stream(self.stream)

    def queued(self, call: Call) -> float:
        """Return the milliseconds between device events around a call."""
        self._flushed.zero_()
        torch.cuda._sleep(AHEAD)
        self._begin.record()
        result = call()
        self._end.record()
        self._end.synchronize()
        del result  # freed when the clock has stopped
        return self._begin.elapsed_time(self._end)

    def awaited(self, call: Call) -> float:
        """Return the milliseconds of the host's clock until the stream is idle again."""
        self._flushed.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        torch.cuda.current_stream().synchronize()
        took = time.perf_counter() - start
        del result
        return 1e3 * took

    def free_bytes(self) -> int:
        """Return how much of the device's memory nobody has."""
        return torch.cuda.mem_get_info(self.torch)[0]

    def forget(self) -> None:
        """Give the memory that PyTorch keeps back to the device."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        """Return what the GPU is, its driver and the libraries."""
        p = self._properties
        return {"device": p.name, "memory_bytes": p.total_memory, "compute_capability": f"{p.major}.{p.minor}",
                "multiprocessors": p.multi_processor_count, **_smi(p.uuid, ("driver_version",)),
                "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), **_versions()}  # fmt: skip

    def state(self) -> dict[str, str]:
        """Return what `nvidia-smi` says of clocks, temperature and power."""
        return _smi(self._properties.uuid, STATE)


class Cpu:
    """A stand-in that has no events: both clocks are the host's."""

    product_sizes: tuple[int, ...] = (256,)
    copied_bytes = 1 << 24

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def in_use(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def queued(self, call: Call) -> float:
        """Return the milliseconds of a call."""
        return self.awaited(call)

    def awaited(self, call: Call) -> float:
        """Return the milliseconds of a call."""
        start = time.perf_counter()
        result = call()
        took = time.perf_counter() - start
        del result
        return 1e3 * took

    def free_bytes(self) -> int:
        """Return more than a rehearsal needs."""
        return 1 << 40

    def forget(self) -> None:
        """Keep nothing."""

    def facts(self) -> dict[str, Any]:
        """Return what the processor is, and that it is no GPU."""
        return {"device": f"rehearsal on {processor()}", **_versions()}

    def state(self) -> dict[str, str]:
        """Return nothing."""
        return {}


def _versions() -> dict[str, str]:
    return {"date": date.today().isoformat(), "python": platform.python_version(), "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}  # fmt: skip


def _smi(uuid: object, fields: tuple[str, ...]) -> dict[str, str]:
    """Return what `nvidia-smi` says of a GPU; nothing where there is no such command, as in some containers."""
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (word.strip() for word in answer.split(",")), strict=False))

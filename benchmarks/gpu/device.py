"""The device that is measured: its clock, its properties and its state. In rehearsals the CPU replaces the GPU."""

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

from benchmarks.shared.machine import processor_name

Call = Callable[[], object]

HEAD_START = 3_000_000
"""Cycles that a GPU waits before a timed call, about 2 ms. If the host queues the call within this time, the time
between the two events is that of the device alone."""

STATE = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit", "pstate",
         "utilization.gpu", "memory.used")  # fmt: skip


class Device(Protocol):
    """What the measurements need from a device.

    Attributes:
        torch: The PyTorch device.
        copied_bytes: Size of a large copy, in bytes.
        product_sizes: Sizes of the square products whose rates are compared.
    """

    torch: torch.device
    copied_bytes: int
    product_sizes: tuple[int, ...]

    def in_use(self) -> AbstractContextManager[object]:
        """Return the context in which all contenders run."""

    def time_queued(self, call: Call) -> float:
        """Return the milliseconds that the device takes for a call that is queued before the device begins it."""

    def time_awaited(self, call: Call) -> float:
        """Return the milliseconds on the host's clock from a call, on an idle device, until its results are ready."""

    def free_bytes(self) -> int:
        """Return the free memory in bytes."""

    def release_memory(self) -> None:
        """Return cached memory to the device."""

    def describe(self) -> dict[str, Any]:
        """Return the properties of the device, and the versions of the libraries."""

    def state(self) -> dict[str, str]:
        """Return the present clocks, temperature and power."""


class Cuda:
    """An NVIDIA GPU. Its settings are read but never changed."""

    product_sizes: tuple[int, ...] = (4096, 8192, 16384)
    copied_bytes = 1 << 30

    def __init__(self, index: int = 0) -> None:
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)
        # CUDA graphs cannot be captured on the default stream.
        self.stream = torch.cuda.Stream(self.torch)
        self._properties = torch.cuda.get_device_properties(self.torch)
        # Written before each call to evict the weights from the cache, as the language model would.
        cache = getattr(self._properties, "L2_cache_size", 1 << 26)
        self._flushed = torch.empty(4 * cache, dtype=torch.uint8, device=self.torch)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def in_use(self) -> AbstractContextManager[object]:
        """Return the context of the stream that all contenders use."""
        return torch.cuda.stream(self.stream)

    def time_queued(self, call: Call) -> float:
        """Return the milliseconds between device events around a call."""
        self._flushed.zero_()
        torch.cuda._sleep(HEAD_START)
        self._begin.record()
        result = call()
        self._end.record()
        self._end.synchronize()
        del result  # released only after the clock has stopped
        return self._begin.elapsed_time(self._end)

    def time_awaited(self, call: Call) -> float:
        """Return the milliseconds on the host's clock until the stream is idle again."""
        self._flushed.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        torch.cuda.current_stream().synchronize()
        took = time.perf_counter() - start
        del result
        return 1e3 * took

    def free_bytes(self) -> int:
        """Return the free memory of the device in bytes."""
        return torch.cuda.mem_get_info(self.torch)[0]

    def release_memory(self) -> None:
        """Return the memory that PyTorch caches to the device."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """Return the properties of the GPU, and the versions of the driver and the libraries."""
        p = self._properties
        return {"device": p.name, "memory_bytes": p.total_memory, "compute_capability": f"{p.major}.{p.minor}",
                "multiprocessors": p.multi_processor_count, **_smi(p.uuid, ("driver_version",)),
                "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), **_versions()}  # fmt: skip

    def state(self) -> dict[str, str]:
        """Return the clocks, temperature and power that `nvidia-smi` reports."""
        return _smi(self._properties.uuid, STATE)


class Cpu:
    """The CPU in place of a GPU. It does not have events, so both clocks are the host's."""

    product_sizes: tuple[int, ...] = (256,)
    copied_bytes = 1 << 24

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def in_use(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def time_queued(self, call: Call) -> float:
        """Return the milliseconds of a call."""
        return self.time_awaited(call)

    def time_awaited(self, call: Call) -> float:
        """Return the milliseconds of a call."""
        start = time.perf_counter()
        result = call()
        took = time.perf_counter() - start
        del result
        return 1e3 * took

    def free_bytes(self) -> int:
        """Return more than a rehearsal needs."""
        return 1 << 40

    def release_memory(self) -> None:
        """Do nothing, because nothing is cached."""

    def describe(self) -> dict[str, Any]:
        """Return the name of the processor, marked as a rehearsal, and the versions of the libraries."""
        return {"device": f"rehearsal on {processor_name()}", **_versions()}

    def state(self) -> dict[str, str]:
        """Return nothing, because only GPUs report their state."""
        return {}


def _versions() -> dict[str, str]:
    return {"date": date.today().isoformat(), "python": platform.python_version(), "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}  # fmt: skip


def _smi(uuid: object, fields: tuple[str, ...]) -> dict[str, str]:
    """Return fields of a GPU from `nvidia-smi`; nothing if the command is missing, as in some containers."""
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (word.strip() for word in answer.split(",")), strict=False))

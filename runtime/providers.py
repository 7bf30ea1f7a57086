"""From a device's name to a session that really runs there, or an error that says what is missing.

ONNX Runtime falls back to the CPU with a line in its log when CUDA cannot start. Here that is an error: sessions for
CUDA list no other provider, forbid the fall-back, and are asked afterwards where they run.
"""

import contextlib
import ctypes
import io
import math
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .errors import ProviderError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

LOG_WARNING, LOG_FATAL = 2, 4  # ONNX Runtime's severities; the first is its default

# The smallest model with a kernel, `y = Relu(x)` (opset 13, IR 8; tests/test_providers.py builds the same bytes with
# onnx): starting it on CUDA loads every library and the driver, without the weights of an SAE.
PROBE = (
    b'\x08\x08:9\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x05probeZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\r"
)

_STARTING = threading.Lock()  # the standard output and ONNX Runtime's log are one for all threads

INSTALL_GPU = 'pip install "onnxruntime-gpu[cuda,cudnn]"'


@dataclass(frozen=True)
class Device:
    """Where sessions run: its name for people ("cpu", "cuda:0") and its name for ONNX Runtime."""

    name: str
    provider: str
    options: dict[str, str]


@dataclass(frozen=True)
class Settings:
    """How ONNX Runtime uses a machine.

    Attributes:
        threads: of the CPU, for one call; None for one per core that this process may use.
        arena: whether freed memory is kept for the next call. Without, it goes back to the system after each, and large
            calls take longer.
    """

    threads: int | None = None
    arena: bool = True


def find_device(name: str) -> Device:
    """Return the device called "cpu", "cuda" (that is "cuda:0"), "cuda:N", or "auto".

    "auto" is CUDA if a session really starts there, and the CPU otherwise.

    Raises:
        ProviderError: the name is none of these, or CUDA was named and does not start; the message says why.
    """
    if name == "cpu":
        return Device("cpu", CPU, {})
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if name != "auto" and not match:
        raise ProviderError(f'device is {name!r}; it must be "auto", "cpu", "cuda" or "cuda:N".')
    index = match[1] or "0" if match else "0"
    # TF32 rounds the factors of a product to 10 bits; PyTorch's default is full float32, and so is this one's.
    cuda = Device(f"cuda:{index}", CUDA, {"device_id": index, "use_tf32": "0"})
    try:
        _require_cuda(cuda)
    except ProviderError:
        if name == "auto":
            return find_device("cpu")
        raise
    return cuda


def start_session(model: str | bytes, device: Device, settings: Settings | None = None) -> ort.InferenceSession:
    """Return a session of `model`, a path or the bytes of a graph, with every node on `device`.

    Raises:
        ProviderError: the session runs elsewhere.
        Exception: ONNX Runtime's own, which share no base class, where it refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL  # errors come as exceptions too
    # Every session has threads of its own, and after a run they would spin, waiting for the next one, on the cores that
    # another graph of the same artifact needs now. Between the nodes of one run spinning is worth it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    settings = settings or Settings()
    options.enable_cpu_mem_arena = settings.arena
    threads = settings.threads or fewer_threads()
    if threads is not None:
        options.intra_op_num_threads = threads
    if device.provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(model, options, providers=[(device.provider, device.options)])
    running = session.get_providers()
    if running[0] != device.provider:
        raise ProviderError(f"A session for {device.name} started on {running[0]} instead.")
    return session


CGROUP = Path("/sys/fs/cgroup")


def fewer_threads(cgroup: Path = CGROUP) -> int | None:
    """Return how many threads to take where this process may not use all cores of the machine, else None.

    ONNX Runtime takes one thread per core of the machine. In a container with a quota they would be stopped, all at
    once, for most of the time.

    Source: Linux, cgroup-v2 `cpu.max` ("max 100000", or the quota and the period in microseconds), and before
    `cpu/cpu.cfs_quota_us` and `cpu/cpu.cfs_period_us`.
    """
    cores = os.cpu_count() or 1
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores)
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (float(word) for file in files for word in (cgroup / file).read_text().split())
            if quota > 0:
                allowed = min(allowed, quota / period)
    return None if allowed >= cores else max(1, math.ceil(allowed))


def _require_cuda(device: Device) -> None:
    """Start the probe on `device`, or raise a ProviderError that says what is missing."""
    asked = f"{device.name} was asked for"
    if CUDA not in ort.get_available_providers():
        raise ProviderError(
            f"{asked}, but the onnxruntime {ort.__version__} installed here is built without CUDA: "
            f"pip uninstall -y onnxruntime; {INSTALL_GPU}"
        )
    with _STARTING:
        _preload_libraries()
        ort.set_default_logger_severity(LOG_FATAL)  # what it would log is in the error below
        try:
            start_session(PROBE, device)
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ProviderError(f"{asked}, but CUDA does not start: {_missing_libraries() or error}") from error
        finally:
            ort.set_default_logger_severity(LOG_WARNING)


def _preload_libraries() -> None:
    """Load CUDA's libraries out of pip's packages, where the dynamic linker does not look."""
    preload: Any = getattr(ort, "preload_dlls", None)  # ONNX Runtime 1.21 and later
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks; `_missing_libraries` says it better
            preload()


def _missing_libraries() -> str:
    """Say which library of the driver or of CUDA cannot be loaded; empty if all can."""
    missing = []
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        missing.append("no NVIDIA driver (libcuda.so.1 is missing; on a container, start it with its GPUs)")
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        missing.append(
            f"{error}; onnxruntime {ort.__version__} needs CUDA {_cuda_version()} and cuDNN 9: {INSTALL_GPU}"
        )
    return "; ".join(missing)


def _cuda_version() -> str:
    return str(getattr(ort, "cuda_version", "") or "as its release notes say")

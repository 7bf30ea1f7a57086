"""From a device's name to a device that really runs here, or an error that says what is missing."""

import contextlib
import ctypes
import io
import re
import threading
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import ProviderError, SAEError
from .cuda.driver import driver
from .start import CPU, CUDA, LOG_FATAL, LOG_WARNING, PROVIDERS, TENSORRT, Device, start_session
from .tensorrt.library import missing_tensorrt, preload_tensorrt

# The smallest model with a kernel, `y = Relu(x)` (opset 13, IR 8; tests/runtime/devices/test_select.py builds the same
# bytes with onnx): starting it on CUDA loads every library and the driver, without the weights of an SAE.
PROBE = (
    b'\x08\x08:9\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x05probeZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\r"
)

_STARTING = threading.Lock()  # the standard output and ONNX Runtime's log are one for all threads

INSTALL_GPU = 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def find_device(name: str) -> Device:
    """Return the device called "cpu", "cuda" (that is "cuda:0"), "cuda:N", "tensorrt", "tensorrt:N", or "auto".

    "auto" is CUDA if a session really starts there, and the CPU otherwise.

    Raises:
        ProviderError: the name is none of these, or a GPU was named and does not start; the message says why.
    """
    if name == CPU:
        return Device(CPU)
    match = re.fullmatch(rf"({CUDA}|{TENSORRT})(?::(\d+))?", name)
    if name != "auto" and not match:
        raise ProviderError(
            f'device is {name!r}; it must be "auto", "cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N".'
        )
    device = Device(match[1], int(match[2] or 0)) if match else Device(CUDA)
    if reason := unavailable_reason(device):
        if name == "auto":
            return Device(CPU)
        raise ProviderError(f"{device.name} was asked for, but {reason}")
    return device


def unavailable_reason(device: Device) -> str:
    """Return why a GPU cannot be used, with what to do about it; nothing if it can."""
    provider = PROVIDERS[device.kind]
    if provider not in ort.get_available_providers():
        return (
            f"the onnxruntime {ort.__version__} installed here is built without {provider}: "
            f"pip uninstall -y onnxruntime; {INSTALL_GPU}"
        )
    with _STARTING:
        _preload_libraries(device)
        ort.set_default_logger_severity(LOG_FATAL)  # what it would log is in what is returned
        try:
            start_session(PROBE, device, {"device_id": str(device.index)})
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            return f"{device.kind} does not start: {'; '.join(missing_parts(device)) or error}{_found(device)}"
        finally:
            ort.set_default_logger_severity(LOG_WARNING)
    return ""


def _preload_libraries(device: Device) -> None:
    """Load CUDA's and TensorRT's libraries out of pip's packages, where the dynamic linker does not look."""
    preload: Any = getattr(ort, "preload_dlls", None)  # ONNX Runtime 1.21 and later
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks; `missing_parts` says it better
            preload()
    if device.kind == TENSORRT:
        preload_tensorrt()


def missing_parts(device: Device) -> list[str]:
    """Return what a GPU lacks on this machine, a sentence each: driver, card, libraries."""
    missing = []
    try:
        gpus = driver().gpus()
    except SAEError as error:
        missing.append(str(error))
    else:
        version = driver().version
        if device.index >= len(gpus):
            missing.append(f"there is no GPU {device.index}; the driver (CUDA {version}) finds {len(gpus)}")
        if (needed := _cuda_version()) and _number(version) < _number(needed):
            missing.append(
                f"the driver runs CUDA up to {version}, onnxruntime {ort.__version__} needs {needed}: install a newer "
                "driver, or an onnxruntime-gpu for the older CUDA"
            )
    if device.kind == TENSORRT and (lacking := missing_tensorrt()):
        missing.append(lacking)
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{device.kind}.so"))
    except OSError as error:
        missing.append(
            f"{error}; onnxruntime {ort.__version__} needs CUDA {_cuda_version() or 'as its release notes say'} and "
            f"cuDNN 9: {INSTALL_GPU}"
        )
    return missing


def _found(device: Device) -> str:
    """Return what there is of a GPU, in brackets; nothing without a driver, which is said elsewhere."""
    try:
        gpus = driver().gpus()
    except SAEError:
        return ""
    names = ", ".join(f"{gpu.name} with compute capability {gpu.capability[0]}.{gpu.capability[1]}" for gpu in gpus)
    return f" (found: a driver for CUDA up to {driver().version}; {names or 'no GPU'})"


def _cuda_version() -> str:
    """Return the CUDA that this ONNX Runtime was built with, such as "13.0"; nothing where it does not say."""
    return str(getattr(ort, "cuda_version", ""))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:1])  # a driver runs every minor version of a major

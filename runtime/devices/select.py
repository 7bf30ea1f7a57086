"""Finds the device with a name, and checks that it works on this machine or reports what is missing."""

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
from .start import CPU, CUDA, ORT_ERRORS, PROVIDERS, TENSORRT, Device, start_session
from .tensorrt.library import missing_tensorrt, preload_tensorrt

PROBE = Path(__file__).with_name("probe.onnx")
"""The smallest model with a kernel, `y = Relu(x)`.

Starting it on CUDA loads the driver and every library, without the weights of an SAE.
"""

_PROBING = threading.Lock()  # all threads share the standard output, which a probe redirects

INSTALL_GPU = 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def check_device_name(name: str) -> re.Match[str] | None:
    """Return the kind and the index of a GPU as a match, or None for "auto" and "cpu".

    Raises:
        ProviderError: The name is not that of a device.
    """
    match = re.fullmatch(rf"({CUDA}|{TENSORRT})(?::([0-9]{{1,4}}))?", name) if isinstance(name, str) else None
    if not match and not (isinstance(name, str) and name in ("auto", CPU)):
        raise ProviderError(
            f'device is {name!r}; it must be "auto", "cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N".'
        )
    return match


def find_device(name: str) -> Device:
    """Return the device with a name, after checking that sessions start on it.

    Args:
        name: "cpu", "cuda" (short for "cuda:0"), "cuda:N", "tensorrt", "tensorrt:N", or "auto", which is "cuda:0" if a
            session starts there and the CPU otherwise.

    Raises:
        ProviderError: The name is not one of these, or sessions do not start on that GPU. The message says why.
    """
    match = check_device_name(name)
    if name == CPU:
        return Device(CPU)
    if name == "auto" and not _has_driver():
        return Device(CPU)
    device = Device(match[1], int(match[2] or 0)) if match else Device(CUDA)
    if reason := unavailable_reason(device):
        if name == "auto":
            return Device(CPU)
        raise ProviderError(f"{device.name} was asked for, but {reason}")
    return device


def _has_driver() -> bool:
    """Tell whether this machine has an NVIDIA driver.

    If it does not, "auto" is the CPU without a probe, so nothing is logged. A probe that fails is reported in ONNX
    Runtime's process-wide log, which `SessionOptions.log_severity_level` does not affect. That log is left alone:
    ONNX Runtime has no function that returns its severity, so the user's setting could not be restored.
    """
    try:
        driver()
    except SAEError:
        return False
    return True


def unavailable_reason(device: Device) -> str:
    """Return why a GPU cannot be used and how to fix it, or an empty string if it can be used."""
    provider = PROVIDERS[device.kind]
    if provider not in ort.get_available_providers():
        return (
            f"the onnxruntime {ort.__version__} installed here is built without {provider}: "
            f"pip uninstall -y onnxruntime; {INSTALL_GPU}"
        )
    with _PROBING:
        _preload_libraries(device)
        try:
            start_session(PROBE.read_bytes(), device, {"device_id": str(device.index)})
        except Exception as error:  # ONNX Runtime's exceptions do not share a base class
            plain = (Exception, RuntimeError, ValueError)
            if type(error) not in plain and not isinstance(error, (ProviderError, *ORT_ERRORS)):
                raise
            return f"{device.kind} does not start: {'; '.join(missing_parts(device)) or error}{_describe_gpus()}"
    return ""


def _preload_libraries(device: Device) -> None:
    """Load the CUDA and TensorRT libraries of pip packages, which the dynamic linker does not search."""
    preload: Any = getattr(ort, "preload_dlls", None)  # ONNX Runtime 1.21 and later
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing; `missing_parts` is clearer
            preload()
    if device.kind == TENSORRT:
        preload_tensorrt()


def missing_parts(device: Device) -> list[str]:
    """Return what this machine needs before it can use a GPU, one clause per part: driver, GPU, libraries.

    Call it only after a session failed to start. Until ONNX Runtime has prepared `libonnxruntime_providers_shared.so`,
    loading a provider's library crashes the process.
    """
    missing = []
    try:
        gpus = driver().gpus()
    except SAEError as error:
        missing.append(str(error))
    else:
        version = driver().version
        if device.index >= len(gpus):
            missing.append(f"there is no GPU {device.index}; the driver (CUDA {version}) finds {len(gpus)}")
        if (needed := _cuda_version()) and _major_version(version) < _major_version(needed):
            missing.append(
                f"the driver runs CUDA up to {version}, onnxruntime {ort.__version__} needs {needed}: install a newer "
                "driver, or an onnxruntime-gpu for the older CUDA"
            )
    if device.kind == TENSORRT and (reason := missing_tensorrt()):
        missing.append(reason)
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{device.kind}.so"))
    except OSError as error:
        cuda = _cuda_version()
        needs = f"CUDA {cuda} and cuDNN 9" if cuda else "the CUDA of its release notes and cuDNN 9"
        missing.append(f"{error}; onnxruntime {ort.__version__} needs {needs}: {INSTALL_GPU}")
    return missing


def _describe_gpus() -> str:
    """Return the driver and the GPUs in brackets, or an empty string without a driver, which is reported elsewhere."""
    try:
        gpus = driver().gpus()
    except SAEError:
        return ""
    names = ", ".join(f"{gpu.name} with compute capability {gpu.capability[0]}.{gpu.capability[1]}" for gpu in gpus)
    return f" (found: a driver for CUDA up to {driver().version}; {names or 'no GPU'})"


def _cuda_version() -> str:
    """Return the CUDA version that ONNX Runtime was built with, such as "13.0", or an empty string if unknown."""
    return str(getattr(ort, "cuda_version", ""))


def _major_version(version: str) -> tuple[int, ...]:
    """Return the major version, which is all that counts: a driver runs every minor version of its major version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:1])

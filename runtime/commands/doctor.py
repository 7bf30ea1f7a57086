"""`python -m runtime doctor`: what this machine can run, and why not."""

import argparse
import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator

import onnxruntime as ort

from .. import _onnxruntime
from .._onnxruntime import SWITCH
from ..artifact.folder import Artifact, read_artifact
from ..devices.capabilities import MIN_CAPABILITY, check_runs, missing_capability, resolve_device_name
from ..devices.cuda.driver import driver
from ..devices.options import Options
from ..devices.select import unavailable_reason
from ..devices.start import CPU, CUDA, TENSORRT, Device
from ..devices.threads import thread_limit
from ..errors import SAEError
from ..parity.versions import ONNXRUNTIMES
from ..tables import format_table


def doctor_command(options: argparse.Namespace) -> int:
    """Print what this machine can run."""
    print(diagnose(None if options.artifact is None else read_artifact(options.artifact)))
    return 0


def diagnose(artifact: Artifact | None = None) -> str:
    """Return a table of this machine's software and devices, and of what each device can run.

    Args:
        artifact: An artifact to check each device for; None asks whether the device runs anything.
    """
    rows = [*_software(), *_gpus()]
    for device in _devices():
        reason = unavailable_reason(device) if device.kind != CPU else ""
        if not reason and artifact is not None:
            reason = _refusal(artifact, device)
        rows.append((device.name, f"no: {reason}" if reason else f"yes: {_what_runs(device)}"))
    return format_table(rows)


def _software() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    cuda = getattr(ort, "cuda_version", "")
    yield "onnxruntime", f"{ort.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    yield "telemetry", _telemetry()
    installed = []
    for wheel in ONNXRUNTIMES:  # they share an import name: the one installed last replaces the other's files
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{wheel} {importlib.metadata.version(wheel)}")
    if len(installed) > 1:
        yield (
            "warning",
            f"{' and '.join(installed)} are both installed and share their files: "
            f"pip uninstall -y {' '.join(ONNXRUNTIMES)}, then install the one that you need",
        )


def _telemetry() -> str:
    """Return whether ONNX Runtime, in wheels from 1.29 on, sends telemetry from this process, and what to set."""
    chosen = _onnxruntime.CHOSEN_BY_USER
    if _onnxruntime.is_allowed(chosen):
        return f"on: {SWITCH} is {chosen!r}; set it to 1 before Python starts to turn it off"
    if _onnxruntime.IMPORTED_BEFORE and chosen is None:
        return (
            "events off, but onnxruntime was imported before runtime and may have made a device id and an uploader "
            f"thread; set {SWITCH}=1 before Python starts, or import runtime first"
        )
    if chosen is None:
        return f"off: runtime has set {SWITCH}=1; set it yourself for programs that use onnxruntime without runtime"
    return f"off: {SWITCH} is {chosen!r}"


def _gpus() -> Iterator[tuple[str, str]]:
    try:
        found = driver()
        gpus = found.gpus()
    except SAEError as error:
        yield "driver", f"none: {error}"
        return
    yield "driver", f"runs CUDA up to {found.version}, {len(gpus)} GPU{'s' * (len(gpus) != 1)}"
    for gpu in gpus:
        major, minor = gpu.capability
        yield f"GPU {gpu.index}", f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory / 1e9:.0f} GB"


def _devices() -> Iterator[Device]:
    yield Device(CPU)
    try:
        indices = range(len(driver().gpus())) or range(1)
    except SAEError:
        indices = range(1)
    for kind in (CUDA, TENSORRT):
        yield from (Device(kind, index) for index in indices)


def _refusal(artifact: Artifact, device: Device) -> str:
    """Return why the device cannot run the artifact, or an empty string if it can."""
    try:
        resolve_device_name(artifact, device.name)
        check_runs(artifact, device, Options())
    except SAEError as error:
        return str(error)
    return ""


def _what_runs(device: Device) -> str:
    if device.kind == CPU:
        threads = thread_limit() or os.cpu_count()
        return f"float32, int8 weights; float16 and bfloat16 are computed in float32 and rounded; {threads} threads"
    capability = driver().gpus()[device.index].capability
    kinds = ["float32", *(what for what in MIN_CAPABILITY if not missing_capability(capability, what))]
    return ", ".join(kinds)

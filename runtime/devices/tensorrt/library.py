"""The TensorRT libraries: loading them from pip's package, their version, and which of them are missing."""

import contextlib
import ctypes
import importlib.util
from pathlib import Path

import onnxruntime as ort

MAJOR = 10
"""The major version of TensorRT that ONNX Runtime 1.19 and later are built for. It is part of the libraries' names."""

CORE = f"libnvinfer.so.{MAJOR}"
LIBRARIES = (CORE, f"libnvinfer_plugin.so.{MAJOR}", f"libnvonnxparser.so.{MAJOR}")
"""The libraries that ONNX Runtime's provider is linked to. Each comes after the ones that it needs."""

PACKAGE = "tensorrt_libs"


def preload_tensorrt() -> bool:
    """Load the libraries of pip's package, which the dynamic linker does not search, and return whether it worked.

    The CUDA libraries must have been loaded before. ONNX Runtime's provider then finds these libraries by name.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in map(Path, (spec.submodule_search_locations or []) if spec else []):
        if (folder / CORE).exists():
            with contextlib.suppress(OSError):  # `missing_tensorrt` reports it
                for name in LIBRARIES:
                    ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
                return True
    return False


def tensorrt_version() -> str | None:
    """Return the version of the installed TensorRT, such as "10.9.0", or None if it is not installed.

    Source: `getInferLibVersion` of NvInferRuntime.h: 10000 * major + 100 * minor + patch, from version 10 on.
    """
    try:
        number = ctypes.CDLL(CORE).getInferLibVersion()
    except (OSError, AttributeError):
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def missing_tensorrt() -> str:
    """Return which TensorRT library does not load and how to fix it, or an empty string if all of them load."""
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            cuda = str(getattr(ort, "cuda_version", "") or "13").split(".")[0]
            return (
                f"{error}; onnxruntime {ort.__version__} needs TensorRT {MAJOR}: "
                f'pip install "tensorrt-cu{cuda}<{MAJOR + 1}", or put the folder of {name} into LD_LIBRARY_PATH before '
                "Python starts"
            )
    return ""

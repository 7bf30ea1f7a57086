"""TensorRT's libraries: loaded out of pip's package, asked for their version, or named as what is missing."""

import contextlib
import ctypes
import importlib.util
from pathlib import Path

import onnxruntime as ort

MAJOR = 10
"""The TensorRT that every ONNX Runtime from 1.19 on is built for; the libraries of 11 have other names."""

CORE = f"libnvinfer.so.{MAJOR}"
LIBRARIES = (CORE, f"libnvinfer_plugin.so.{MAJOR}", f"libnvonnxparser.so.{MAJOR}")
"""Those that ONNX Runtime's provider is linked to, each after the ones that it needs."""

PACKAGE = "tensorrt_libs"


def preload_tensorrt() -> bool:
    """Load the libraries of pip's package, where the dynamic linker does not look; tell whether they were loaded.

    CUDA's libraries have to be loaded before; ONNX Runtime's provider then finds these by their names.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in map(Path, (spec.submodule_search_locations or []) if spec else []):
        if (folder / CORE).exists():
            with contextlib.suppress(OSError):  # what is missing, `missing_tensorrt` says
                for name in LIBRARIES:
                    ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
                return True
    return False


def tensorrt_version() -> str | None:
    """Return the version of the TensorRT that would be used, such as "10.9.0"; None if there is none.

    Source: `getInferLibVersion` of NvInferRuntime.h; from 10 on it is 10000 * major + 100 * minor + patch.
    """
    try:
        number = ctypes.CDLL(CORE).getInferLibVersion()
    except (OSError, AttributeError):
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def missing_tensorrt() -> str:
    """Return which library of TensorRT cannot be loaded, with what to do about it; nothing if all can."""
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

"""The versions of the packages that make what is written, for its manifest."""

import contextlib
import importlib.metadata

PACKAGES = (
    "saeexport", "torch", "transformer_lens", "einops", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "numpy", "ml_dtypes", "safetensors",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the version of each installed package; no path, user name or time, so that bytes repeat."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions

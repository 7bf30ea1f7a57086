"""The packages that make what is written, whose versions are in its manifest."""

from runtime.parity.versions import installed_versions

PACKAGES = (
    "saeexport", "torch", "transformer_lens", "einops", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "numpy", "ml_dtypes", "safetensors",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the version of each installed package; no path, user name or time, so that bytes repeat."""
    return installed_versions(PACKAGES)

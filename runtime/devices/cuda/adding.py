"""The ONNX models that add two tensors of a GPU: one node, `z = x + y`, on vectors of one dtype."""

from pathlib import Path


def read_adding_model(dtype: str) -> bytes:
    """Return the model for a dtype: "float32", "float16" or "bfloat16"."""
    return Path(__file__).with_name(f"add_{dtype}.onnx").read_bytes()

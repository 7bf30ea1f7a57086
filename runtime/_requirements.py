"""Says which extra to install where there is no ONNX Runtime; imported before everything else."""

try:
    import onnxruntime  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":  # it is installed, and something that it needs is missing
        raise
    raise ModuleNotFoundError(
        "runtime executes artifacts with ONNX Runtime, which is not installed. Install one of the two builds, never "
        'both: pip install "saeexport[cpu]" for a CPU, pip install "saeexport[gpu]" for an NVIDIA GPU.',
        name="onnxruntime",
    ) from None

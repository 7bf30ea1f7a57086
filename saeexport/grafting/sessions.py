"""ONNX Runtime sessions of hosts on the CPU while they are grafted into; `runtime` runs what was written."""

from pathlib import Path

import onnxruntime as ort

from runtime.devices.start import CPU, LOG_FATAL, PROVIDERS

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def start_on_cpu(model: str | bytes, folder: Path | None = None, optimize: bool = True) -> ort.InferenceSession:
    """Start a session.

    Args:
        model: Path of the model, or its bytes.
        folder: Folder that the external data of a model given as bytes is relative to.
        optimize: Whether ONNX Runtime rewrites the graph, as it does by default. If not, every value exists.

    Raises:
        Exception: ONNX Runtime refuses the model. Its exceptions do not share a base class.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(folder.absolute()))
    return ort.InferenceSession(model, options, providers=[PROVIDERS[CPU]])

"""Starts ONNX Runtime on the bytes of a graph that were checked, with its parameters in memory.

`SessionOptions.add_initializer` makes ONNX Runtime use parameters in place. The graph names the file of the weights,
and ONNX Runtime refuses the graph if there is no such file, or if it is a symbolic link, as in the cache of the Hugging
Face Hub. Then `SessionOptions.add_external_initializers` puts the parameters in the place of the file. ONNX Runtime
copies them for it, so that loading takes about half as long again and, for a moment, twice the memory.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16
from ..artifact.held import HeldFolder
from ..artifact.onnxfile import Parameter
from ..errors import ProviderError


class Start(Protocol):
    """Starts a session of a model, given as bytes; see `runtime.devices.start.start_session`."""

    def __call__(  # noqa: D102
        self, model: bytes, *, parameters: Mapping[str, ort.OrtValue] | None = None, folder: Path | None = None
    ) -> ort.InferenceSession: ...


def start_on_checked_bytes(
    graph: str,
    files: HeldFolder,
    parameters: Mapping[str, ort.OrtValue],
    start: Start,
    part: bytes | None = None,
) -> ort.InferenceSession:
    """Start a session of a graph that depends on nothing that happens at the path of the artifact.

    Args:
        graph: Name of the graph.
        files: Files of the artifact.
        parameters: Values in host memory of the parameters in other files.
        start: Starts the session, with the values that the device uses in place.
        part: A model that was cut out of the graph and is started instead; None for the whole graph.
    """
    held = files.graphs[graph]
    model = held.content if part is None else part
    if files.are_at_path(graph) and not any(file.path.is_symlink() for file in files.data.values()):
        # A release that refuses this says so in ways of its own. What is wrong with the graph is said below, too.
        with contextlib.suppress(Exception):
            session = start(model, folder=held.path.parent)
            if files.are_at_path(graph):
                return session
    return start(model, parameters=parameters)


def parameter_values(graph: str, files: HeldFolder, part: bytes | None = None) -> dict[str, ort.OrtValue]:
    """Return the parameters of a graph, or of a model that was cut out of it, as values on the mapped files.

    Raises:
        ProviderError: The artifact is in bfloat16, and this ONNX Runtime is too old for it.
    """
    return {name: _ort_value(parameter) for name, parameter in files.parameters(graph, part).items()}


def _ort_value(parameter: Parameter) -> ort.OrtValue:
    """Return a parameter as an `OrtValue` on the same memory."""
    if parameter.array.dtype.name != BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy(parameter.array)
    if not hasattr(ort.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
        raise ProviderError(
            f"The artifact is in bfloat16, which runs with ONNX Runtime 1.20 or later; {ort.__version__} is installed: "
            "pip install --upgrade onnxruntime"
        )
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(parameter.array.view(np.uint16), parameter.element_type)

"""Starts ONNX Runtime on the bytes of a graph that were checked, with its parameters in memory.

`SessionOptions.add_initializer` makes ONNX Runtime use parameters in place. The graph names the file of the weights,
and ONNX Runtime refuses the graph if there is no such file, or if it is a symbolic link, as in the cache of the Hugging
Face Hub: it is told the name of the file that the link leads to. If the file is gone,
`SessionOptions.add_external_initializers` puts the parameters in its place. ONNX Runtime copies them for it, so that
loading takes about half as long again and, for a moment, twice the memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.tensor import Array
from ..artifact.held import HeldFolder
from ..artifact.onnxfile import with_locations
from ..errors import ProviderError
from .start import is_from_onnx_runtime


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
    model = files.graphs[graph].content if part is None else part
    place = _place(graph, files)
    if place is not None and files.are_at_path(graph):
        folder, names = place
        try:
            session = start(with_locations(model, names), folder=folder)
            if files.are_at_path(graph):
                return session
        except Exception as error:  # a release that refuses this says so in ways of its own
            if not is_from_onnx_runtime(error):  # such as that of a signal handler
                raise
    return start(model, parameters=parameters)


def _place(graph: str, files: HeldFolder) -> tuple[Path, dict[str, str]] | None:
    """Return the folder in which ONNX Runtime finds the files with parameters, and their names there if they differ.

    None if they are behind links that lead to several folders or in a circle, or if the path of the folder is not text.
    """
    folder, names = files.graphs[graph].path.parent, {}
    try:
        if any(file.path.is_symlink() for file in files.data.values()):
            real = {name: file.path.resolve() for name, file in files.data.items()}
            if len({path.parent for path in real.values()}) > 1:
                return None
            folder, names = next(iter(real.values())).parent, {name: path.name for name, path in real.items()}
        "".join([str(folder), *names.values()]).encode()
    except (OSError, RuntimeError, UnicodeEncodeError):  # RuntimeError: the links lead in a circle now
        return None
    return folder, names


def parameter_values(graph: str, files: HeldFolder, part: bytes | None = None) -> dict[str, ort.OrtValue]:
    """Return the parameters of a graph, or of a model that was cut out of it, as values on the mapped files.

    Raises:
        ProviderError: The artifact is in bfloat16, and this ONNX Runtime is too old for it.
    """
    return {name: ort_value(parameter.array) for name, parameter in files.parameters(graph, part).items()}


def ort_value(array: Array) -> ort.OrtValue:
    """Return an array as an `OrtValue`, on the same memory if the array is contiguous.

    Raises:
        ProviderError: The array is in bfloat16, and this ONNX Runtime is too old for it.
    """
    array = np.asarray(array, order="C")
    if array.dtype.name != BFLOAT16:  # numpy's own dtypes do not include it
        return ort.OrtValue.ortvalue_from_numpy(array)
    if not hasattr(ort.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
        raise ProviderError(
            f"bfloat16 runs with ONNX Runtime 1.20 or later; {ort.__version__} is installed: "
            "pip install --upgrade onnxruntime"
        )
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), DTYPES[BFLOAT16].onnx)

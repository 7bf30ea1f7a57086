"""The interface of a backend, which runs the graphs of an artifact on one kind of device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnxruntime as ort

from ..arrays.tensor import TensorValue
from ..artifact.folder import Artifact
from ..artifact.held import HeldFiles
from ..artifact.manifest import GraphSpec
from .cpu import CpuBackend
from .options import Options
from .start import CPU, CUDA, Device


class Backend(Protocol):
    """Runs graphs on a device, and moves arrays to and from it."""

    def load_graph(self, graph: str, files: HeldFiles) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a graph of the artifact.

        Args:
            graph: Name of the graph, such as "model".
            files: Files of the artifact.
        """

    def load_model(self, model: bytes, one_thread: bool) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a model with its parameters inside.

        Args:
            model: The model.
            one_thread: Whether the session runs on the thread that calls it, instead of those of the options.
        """

    def search_session(self, tokens: int, k: int, load_encoder: Callable[[], ort.InferenceSession]) -> Any:
        """Return what `run` takes in place of a session of `features`; None where `features` takes less time.

        Args:
            tokens: Number of tokens.
            k: Number of features to find.
            load_encoder: Returns a session of `encode`, from `load_graph`.
        """

    def import_array(self, x: Any) -> TensorValue:
        """Return a caller's array, of any library, without a copy: its memory stays where it is.

        Raises:
            InputError: The array is on another device, or not contiguous.
        """

    def run(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[TensorValue]:
        """Run a graph block by block and return some of its outputs, on the device of the graph's first input.

        Args:
            session: Session of the graph, from `load_graph`, or what `search_session` returned.
            spec: Inputs and outputs of the graph, as the manifest lists them.
            feeds: Arrays by the name of the input.
            names: Names of the outputs to return.
            sizes: Number of tokens of each block. They add up to the tokens of the batch.
        """

    def add(self, a: TensorValue, b: TensorValue) -> TensorValue:
        """Return the sum of two arrays with the same shape, dtype and device."""

    def move_to_device_of(self, array: TensorValue, tensor: TensorValue) -> TensorValue:
        """Return `array` on the device of `tensor`."""

    def release_session(self, session: ort.InferenceSession) -> None:
        """Free what the backend keeps for a session that is no longer used. A finalizer may call it."""

    def close(self) -> None:
        """Free everything else. All sessions must have been released."""


def create_backend(
    device: Device, options: Options, artifact: Artifact, files: HeldFiles, block_tokens: int
) -> Backend:
    """Return the backend that runs an artifact's graphs on a device, at most `block_tokens` tokens at a time."""
    if device.kind == CPU:
        return CpuBackend(options)
    # A session on the CPU starts without these modules.
    if device.kind == CUDA:
        from .cuda.backend import CudaBackend

        return CudaBackend(device, options, artifact, files, block_tokens)
    from .tensorrt.backend import TensorRTBackend

    return TensorRTBackend(device, options, artifact, files, block_tokens)

"""Where graphs are run: what a device has to do for a session, and which class does it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort

from ..arrays.tensor import TensorValue
from ..artifact.folder import Artifact
from ..artifact.manifest import GraphSpec
from .cpu import CpuBackend
from .cuda.execution import CudaBackend
from .options import Options
from .start import CPU, CUDA, Device
from .tensorrt.execution import TensorRTBackend


class Backend(Protocol):
    """A device's side of a session."""

    def start(self, graph: str, path: Path) -> ort.InferenceSession:
        """Return a session of a graph of the artifact, from its file."""

    def given(self, x: Any) -> TensorValue:
        """Take over what a caller gave, where it is."""

    def run(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[TensorValue]:
        """Run a graph on one block of tokens after the other and return its outputs `names`."""

    def add(self, a: TensorValue, b: TensorValue) -> TensorValue:
        """Return the sum of two tensors."""

    def move_to_device_of(self, array: TensorValue, tensor: TensorValue) -> TensorValue:
        """Return an array where another one is."""

    def forget(self, session: ort.InferenceSession) -> None:
        """Free what belongs to a session that is no longer used."""

    def close(self) -> None:
        """Free the rest; the sessions are gone."""


def backend_on(device: Device, options: Options, artifact: Artifact, block_tokens: int) -> Backend:
    """Return what runs an artifact's graphs on a device, at most so many tokens at a time."""
    if device.kind == CPU:
        return CpuBackend(options)
    kind = CudaBackend if device.kind == CUDA else TensorRTBackend
    return kind(device, options, artifact, block_tokens)

"""Where graphs are run: what a device has to do for a session, and which class does it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort

from .artifact import Artifact
from .cuda.execution import OnCUDA
from .host import Host
from .manifest import GraphSpec
from .options import Options
from .providers import CPU, CUDA, Device
from .tensor import Feed
from .tensorrt.execution import OnTensorRT


class Execution(Protocol):
    """A device's side of a session."""

    def start(self, graph: str, path: Path) -> ort.InferenceSession:
        """Return a session of a graph of the artifact, from its file."""

    def given(self, x: Any) -> Feed:
        """Take over what a caller gave, where it is."""

    def run(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, Feed],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[Feed]:
        """Run a graph on one block of tokens after the other and return its outputs `names`."""

    def add(self, a: Feed, b: Feed) -> Feed:
        """Return the sum of two tensors."""

    def alongside(self, array: Feed, tensor: Feed) -> Feed:
        """Return an array where another one is."""

    def forget(self, session: ort.InferenceSession) -> None:
        """Free what belongs to a session that is no longer used."""

    def close(self) -> None:
        """Free the rest; the sessions are gone."""


def execution_on(device: Device, options: Options, artifact: Artifact, block_tokens: int) -> Execution:
    """Return what runs an artifact's graphs on a device, at most so many tokens at a time."""
    if device.kind == CPU:
        return Host(options)
    kind = OnCUDA if device.kind == CUDA else OnTensorRT
    return kind(device, options, artifact, block_tokens)

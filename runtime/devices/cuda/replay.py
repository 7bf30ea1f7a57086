"""CUDA graphs: of a few tokens, launching the kernels takes longer than running them; a replay launches all at once.

A replay reads and writes the memory of its capture, so that inputs are copied there and results from there, on the
stream. ONNX Runtime keeps captured graphs apart by the number that a run names, and for each thread that runs them: a
service should have few threads that call a session, and call each size once in each before it takes requests. While a
graph is captured, no other thread of the process may allocate or free memory of the GPU, or wait for it; the sessions
of this package on one card wait for each other, other libraries do not. Before its releases of May 2026, ONNX Runtime
waits for a replay to end, also on a caller's stream (microsoft/onnxruntime#28686).

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs".
"""

import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ...arrays.tensor import Tensor, TensorValue
from ...artifact.manifest import GraphSpec
from ...artifact.names import K
from ..blocks import dimensions_of
from .binding import bind, run_options
from .memory import DeviceMemory

MAX_CAPTURES = 32
"""Captures of one session; each holds memory for its inputs and outputs. What comes after takes the normal path."""

Key = tuple[object, ...]


@dataclass(frozen=True)
class Replay:
    """A captured graph, or one that its first run captures: its memory, and how it is run."""

    session: ort.InferenceSession
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    binding: Any
    options: ort.RunOptions

    def run(self) -> None:
        """Queue the graph."""
        self.session.run_with_iobinding(self.binding, self.options)


class Replays:
    """The captured graphs of a session of this package, by graph and shape.

    Args:
        memory: of the card.
        sizes: how many tokens a batch has that is replayed; batches of other sizes take the normal path.
    """

    def __init__(self, memory: DeviceMemory, sizes: Sequence[int]) -> None:
        self._memory = memory
        self._sizes = frozenset(sizes)
        self._replays: dict[Key, Replay] = {}
        self._numbers = itertools.count(1)
        self._forgotten: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()  # that a call may still hold

    def of(
        self, session: ort.InferenceSession, spec: GraphSpec, feeds: Mapping[str, TensorValue], tokens: int
    ) -> Replay | None:
        """Return the replay for these shapes; None where the batch is to be run as it is."""
        if tokens not in self._sizes or session in self._forgotten:
            return None
        # The number of features is read by the host while the graph is captured: another one is another graph.
        k = int(np.asarray(feeds[K])[0]) if K in feeds else None
        key = (id(session), spec.file, k, *(feed.shape for feed in feeds.values()))
        if key not in self._replays:
            if len(self._replays) == MAX_CAPTURES:
                return None
            self._replays[key] = self._new(session, spec, feeds)
        return self._replays[key]

    def forget(self, session: ort.InferenceSession) -> None:
        """Free what was captured of a session of ONNX Runtime."""
        self._forgotten.add(session)
        self._replays = {key: replay for key, replay in self._replays.items() if replay.session is not session}

    def close(self) -> None:
        """Free all."""
        self._replays.clear()

    def _new(self, session: ort.InferenceSession, spec: GraphSpec, feeds: Mapping[str, TensorValue]) -> Replay:
        dimensions = dimensions_of(spec, feeds)
        kinds = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
        shapes = {name: feed.shape for name, feed in feeds.items() if name != K}
        inputs = self._tensors(shapes, kinds)
        outputs = self._tensors(
            {tensor.name: tuple(dimensions[d] if isinstance(d, str) else d for d in tensor.shape)
             for tensor in spec.outputs}, kinds,
        )  # fmt: skip
        fed: dict[str, TensorValue] = {name: inputs.get(name, feeds[name]) for name in feeds}
        binding = bind(session, fed, outputs, self._memory.card.index)
        return Replay(session, inputs, outputs, binding, run_options(str(next(self._numbers))))

    def _tensors(self, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> dict[str, Tensor]:
        tensors = self._memory.tensors([(tuple(shape), kinds[name]) for name, shape in shapes.items()])
        return dict(zip(shapes, tensors, strict=True))

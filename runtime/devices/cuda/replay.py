"""CUDA graphs. For a few tokens, launching kernels takes longer than running them; a replay launches all at once.

A replay reads and writes the memory of its capture, so inputs are copied there and results from there, on the stream.
ONNX Runtime tells captures apart by the id that a run names and by the calling thread. A service should therefore call
a session from few threads, and call each size once in each of them before it takes requests.

During a capture, no other thread of the process may allocate GPU memory, free it, or wait for the GPU. The sessions of
this package on one GPU wait for each other; other libraries do not. ONNX Runtime before its releases of May 2026 waits
for the end of a replay, even on a caller's stream (microsoft/onnxruntime#28686).

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs".
"""

import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from ...arrays.tensor import Tensor, TensorValue
from ...artifact.manifest import GraphSpec
from ...artifact.names import K
from ..blocks import Form, output_dimensions, output_forms
from .binding import bind, run_options
from .memory import DeviceMemory

MAX_CAPTURES = 32
"""Largest number of captures of one session.

Each holds memory for its inputs and outputs. Further shapes are run without a capture.
"""

Key = tuple[object, ...]


@dataclass(frozen=True)
class Replay:
    """A CUDA graph, which its first run captures and every later run replays.

    Attributes:
        session: ONNX Runtime session of the graph.
        forms: Shapes and dtypes of the outputs, by name.
        inputs: Memory that it reads, by the name of the input.
        outputs: Memory that it writes, by the name of the output.
        binding: Binding of that memory.
        options: Run options with the id of the capture.
    """

    session: ort.InferenceSession
    forms: dict[str, Form]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    binding: Any
    options: ort.RunOptions

    def run(self) -> None:
        """Queue one run on the session's stream."""
        self.session.run_with_iobinding(self.binding, self.options)


class Replays:
    """The CUDA graphs of one `SAESession`, by graph and shapes.

    Args:
        memory: Memory of the GPU.
        sizes: Numbers of tokens that are captured and replayed. Batches of other sizes are run without a capture.
    """

    def __init__(self, memory: DeviceMemory, sizes: Sequence[int]) -> None:
        self._memory = memory
        self._sizes = frozenset(sizes)
        self._replays: dict[Key, Replay] = {}
        self._ids = itertools.count(1)
        self._released: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()  # a call may still use them

    def find_or_create(
        self, session: ort.InferenceSession, spec: GraphSpec, feeds: Mapping[str, TensorValue], tokens: int
    ) -> Replay | None:
        """Return the replay for these inputs, or None if they are to be run without a capture.

        Raises:
            InputError: As for `output_dimensions`.
        """
        if tokens not in self._sizes or session in self._released:
            return None
        # The host reads k during the capture, so each k needs a graph of its own.
        k = output_dimensions(spec, feeds).get(K)
        key = (id(session), spec.file, k, *(feed.shape for feed in feeds.values()))
        if key not in self._replays:
            if len(self._replays) == MAX_CAPTURES:
                return None
            self._replays[key] = self._new(session, spec, feeds)
        return self._replays[key]

    def release_session(self, session: ort.InferenceSession) -> None:
        """Free the captures of an ONNX Runtime session, and make no more of it."""
        self._released.add(session)
        self._replays = {key: replay for key, replay in self._replays.items() if replay.session is not session}

    def close(self) -> None:
        """Free all captures."""
        self._replays.clear()

    def _new(self, session: ort.InferenceSession, spec: GraphSpec, feeds: Mapping[str, TensorValue]) -> Replay:
        copied = [tensor for tensor in spec.inputs if tensor.name != K]
        names = [tensor.name for tensor in spec.outputs]
        inputs = self._tensors(
            [tensor.name for tensor in copied], [(feeds[tensor.name].shape, tensor.dtype) for tensor in copied]
        )
        forms = output_forms(spec, feeds, names)
        outputs = self._tensors(names, forms)
        fed: dict[str, TensorValue] = {name: inputs.get(name, feeds[name]) for name in feeds}
        binding = bind(session, fed, outputs, self._memory.card.index)
        options = run_options(str(next(self._ids)))
        return Replay(session, dict(zip(names, forms, strict=True)), inputs, outputs, binding, options)

    def _tensors(self, names: Sequence[str], forms: Sequence[Form]) -> dict[str, Tensor]:
        return dict(zip(names, self._memory.tensors(forms), strict=True))

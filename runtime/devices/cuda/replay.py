"""CUDA graphs. For a few tokens, launching kernels takes longer than running them; a replay launches all at once.

A replay reads and writes the memory of its capture, so inputs are copied there and results from there, on the stream.
The driver captures what ONNX Runtime queues. ONNX Runtime's own captures (`enable_cuda_graph`) belong to a thread, and
fail when another thread allocates GPU memory meanwhile.

Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/, "CUDA Graphs".
"""

import warnings
import weakref
from collections.abc import Mapping, Sequence

import onnxruntime as ort

from ...arrays.tensor import Tensor, TensorValue
from ...artifact.manifest import GraphSpec
from ...artifact.names import K
from ...errors import SAEError
from ..blocks import Form, output_dimensions, output_forms
from ..start import is_from_onnx_runtime
from .binding import bind, run_options
from .memory import DeviceMemory

MAX_CAPTURES = 32
"""Largest number of captures of one session.

Each holds memory for its inputs and outputs. Further shapes are run without a capture.
"""

RUNS_BEFORE = 2
"""Number of runs before a capture. In them ONNX Runtime and cuBLAS allocate memory, which a capture does not allow."""

ATTEMPTS = 3
"""Number of calls that try to capture. A capture fails if another thread waits for all work of the GPU meanwhile."""

Key = tuple[object, ...]


class Replay:
    """A run of a graph that is captured as a CUDA graph the first time and replayed from then on.

    A call in which the capture fails has run the graph, and so have all later calls if none could capture it.

    Attributes:
        session: ONNX Runtime session of the graph.
        forms: Shapes and dtypes of the outputs, by name.
        inputs: Memory that it reads, by the name of the input.
        outputs: Memory that it writes, by the name of the output.

    Args:
        session: As above.
        spec: The graph.
        feeds: Inputs of the first run, of which the shapes and `k` matter.
        memory: Memory of the GPU.
    """

    def __init__(
        self, session: ort.InferenceSession, spec: GraphSpec, feeds: Mapping[str, TensorValue], memory: DeviceMemory
    ) -> None:
        self._card, self._stream = memory.card, memory.stream
        self._graph: int | None = None
        self._file, self._attempts = spec.file, ATTEMPTS
        names = [tensor.name for tensor in spec.outputs]
        copied = {tensor.name: (feeds[tensor.name].shape, tensor.dtype) for tensor in spec.inputs if tensor.name != K}
        self.session = session
        self.forms: dict[str, Form] = dict(zip(names, output_forms(spec, feeds, names), strict=True))
        self.inputs: dict[str, Tensor] = dict(zip(copied, memory.tensors(list(copied.values())), strict=True))
        self.outputs: dict[str, Tensor] = dict(zip(names, memory.tensors(list(self.forms.values())), strict=True))
        self._binding = bind(session, {**feeds, **self.inputs}, self.outputs, memory.card.index)

    def run(self) -> None:
        """Queue one run on the session's stream."""
        if self._graph is not None:
            self._card.launch(self._graph, self._stream)
            return
        for _ in range(RUNS_BEFORE if self._attempts else 1):
            self._queue()
        if self._attempts:
            self._attempts -= 1
            self._capture()

    def _capture(self) -> None:
        try:
            self._graph = self._card.capture(self._stream, self._queue)
        except Exception as error:
            if not (isinstance(error, SAEError) or is_from_onnx_runtime(error)):
                raise
            if not self._attempts:
                warnings.warn(f"{self._file} is run without a CUDA graph: {error}", RuntimeWarning, stacklevel=2)

    def _queue(self) -> None:
        self.session.run_with_iobinding(self._binding, run_options())

    def __del__(self) -> None:
        card, graph = self._card, self._graph
        if graph is not None:
            card.defer(lambda: card.destroy_graph(graph))


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
        key = (id(session), k, *(feed.shape for feed in feeds.values()))
        if key not in self._replays:
            if len(self._replays) == MAX_CAPTURES:
                return None
            self._replays[key] = Replay(session, spec, feeds, self._memory)
        return self._replays[key]

    def release_session(self, session: ort.InferenceSession) -> None:
        """Free the captures of an ONNX Runtime session, and make no more of it."""
        self._released.add(session)
        self._replays = {key: replay for key, replay in self._replays.items() if replay.session is not session}

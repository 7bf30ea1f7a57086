"""The CUDA backend. It uses arrays on the GPU in place, and copies arrays on the host through pinned memory.

Everything is queued on one stream, the session's own or the caller's:

    input on the GPU    read in place; the stream waits for the work that the input's library has queued
    input on the host   copied to pinned memory, and from there by the GPU
    result              written to GPU memory and left there; for a caller on the host, the GPU copies it to pinned
                        memory, which is the memory of the caller's array

On the session's own stream, a call returns when its results are complete. On a caller's stream, a call with arrays on
the GPU returns at once, and work that the caller queues on that stream afterwards sees the results. If a tensor was
handed to another stream, the next call that reads the tensor waits for that stream, so it sees edits in place.
"""

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from ...arrays import dlpack
from ...arrays.dtypes import DTYPES, FLOAT32
from ...arrays.pool import BufferPool
from ...arrays.tensor import Array, Tensor, TensorValue, as_given
from ...artifact.folder import Artifact
from ...artifact.held import HeldFiles
from ...artifact.manifest import CUSTOM, GraphSpec
from ...artifact.names import HOOK_ACTS_POST, K
from ...errors import InputError, SAEError
from ..blocks import output_forms, slice_feeds
from ..loading import parameter_values, start_on_checked_bytes
from ..options import TF32, Options, stream_handle
from ..start import CUDA, Device, start_session
from .adding import read_adding_model
from .binding import Bindings, run_options
from .driver import Card, driver
from .folding import FoldedGraphs
from .memory import KEPT_CALLS, DeviceMemory, join_neighbours
from .replay import Replays
from .search import FIRST_IDS, EncodeAndSearch, first_ids, is_searched, read_search_model
from .weights import DeviceWeights


class CudaBackend:
    """Runs graphs on a GPU; see `runtime.devices.backend.Backend`.

    Several threads may call it at once. The stream runs their work in turn.

    Attributes:
        stream: Address of the stream on which everything is queued.

    Args:
        device: GPU to run on.
        options: Options of the session.
        artifact: Artifact whose graphs are run.
        files: Files of the artifact.
        block_tokens: Largest number of tokens that are run at a time.
    """

    def __init__(
        self, device: Device, options: Options, artifact: Artifact, files: HeldFiles, block_tokens: int
    ) -> None:
        self._device = device
        self._options = options
        self._card = driver().card(device.index)
        self._owns_stream = options.stream is None
        with self._card.exclusive():
            self.stream = self._card.stream() if self._owns_stream else stream_handle(options.stream)
            is_default = self.stream == dlpack.LEGACY_STREAM
            if options.cuda_graph and (is_default or not self._card.is_non_blocking(self.stream)):
                raise InputError(
                    "stream is CUDA's default stream, or waits for it, and cannot capture CUDA graphs. With "
                    "cuda_graph, pass another one, such as torch.cuda.Stream() or cupy.cuda.Stream(non_blocking=True)."
                )
        self._memory = DeviceMemory(self._card, self.stream, keep=options.arena)
        self._pinned = BufferPool(options.arena, self._card.pinned, calls=KEPT_CALLS)
        self._staging = BufferPool(options.arena, self._card.pinned, calls=KEPT_CALLS)
        self._staged: list[Array] = []
        self._weights = DeviceWeights(files.weights, self._memory)
        self._bindings = Bindings(device.index)
        self._replays = Replays(self._memory, options.cuda_graph)
        self._manifest = artifact.manifest
        self._sae = sae = artifact.manifest.sae
        self._folded = FoldedGraphs(self._memory, self._weights, sae)
        # In float32 the product takes nearly all of the time, and a limit of the memory leaves none for another matrix.
        fast_products = sae.dtype != FLOAT32 or options.precision == TF32
        self._folds_bias = fast_products and options.memory_limit is None and not sae.architecture.startswith(CUSTOM)
        self._adders: dict[str, ort.InferenceSession] = {}
        self._search: tuple[ort.InferenceSession, Tensor] | None = None
        # Frees the memory of a session that is dropped without being closed.
        weakref.finalize(self, self._card.defer, _closer(self._card, self._memory, self._owns_stream)).atexit = False

    def cuda_options(self) -> dict[str, str]:
        """Return the options of ONNX Runtime's CUDA provider.

        Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
        """
        options = {
            "device_id": str(self._device.index),
            # TF32 rounds the factors of a product to 10 bits. The default is full float32, as in PyTorch.
            "use_tf32": "1" if self._options.precision == TF32 else "0",
            "user_compute_stream": str(self.stream),
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles the arena each time
        }
        if self._options.memory_limit is not None:
            options["gpu_mem_limit"] = str(self._options.memory_limit)
        return options

    def load_graph(self, graph: str, files: HeldFiles) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a graph. All graphs share one copy of the parameters on the GPU."""
        with self._card.exclusive():
            session = self._start(graph, files)
            if self._folds_bias:
                self._folded.add(session, graph, files)
            return session

    def _start(self, graph: str, files: HeldFiles, part: bytes | None = None) -> ort.InferenceSession:
        """Start a session of a graph, or of a model that was made from it."""
        self._memory.check_open()
        start = functools.partial(
            start_session, device=self._device, provider_options=self.cuda_options(),
            threads=self._options.threads, arena=self._options.arena, weights=self._weights.values(),
        )  # fmt: skip
        return self._kept_until_done(
            start_on_checked_bytes(graph, files, parameter_values(graph, files, part), start, part)
        )

    def _kept_until_done(self, session: ort.InferenceSession) -> ort.InferenceSession:
        """Return a session that lives until its runs are done.

        On a caller's stream, calls return early. ONNX Runtime may have queued a function of the host that frees memory
        after a run, and that ends the process if the session is gone by then.
        """
        if not self._owns_stream:
            # Another thread may have the card, and then the wait is deferred: what it waits for lives until then.
            # Python frees the last of a tuple first, so that the session dies before its values and its stream.
            kept = self._options.stream, session.values_in_use, session._sess
            weakref.finalize(session, self._card.defer, functools.partial(_wait_for, self._card, self.stream, kept))
        return session

    def load_model(self, model: bytes, one_thread: bool) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a model with its parameters inside, also for TensorRT with CUDA's provider.

        TensorRT would take from seconds to minutes to build an engine for it.
        """
        cuda = Device(CUDA, self._device.index)
        with self._card.exclusive():
            self._memory.check_open()
            threads = 1 if one_thread else self._options.threads
            options, arena = self.cuda_options(), self._options.arena
            return self._kept_until_done(start_session(model, cuda, options, threads=threads, arena=arena))

    def search_session(
        self, tokens: int, k: int, load_encoder: Callable[[], ort.InferenceSession]
    ) -> EncodeAndSearch | None:
        """Return the sessions that find the strongest features of many tokens; None where `features` is to run."""
        if not is_searched(self._device.kind, self._manifest, tokens, k):
            return None
        encoder = load_encoder()
        with self._card.exclusive():
            self._begin({})
            if self._search is None:
                session = self.load_model(read_search_model(self._sae.dtype), one_thread=True)
                ids = self._move_to_gpu({FIRST_IDS: first_ids(self._sae.d_sae)}, waits=True)[FIRST_IDS]
                self._wait()
                assert isinstance(ids, Tensor)
                self._search = session, ids
            return EncodeAndSearch(encoder, *self._search)

    def import_array(self, x: Any) -> TensorValue:
        """Return a caller's array without a copy: as a `Tensor` if it is on the GPU, as an array if on the host.

        Raises:
            InputError: The array is on another GPU, or not contiguous.
        """
        if isinstance(x, Tensor) and x.device == self._memory.device:
            return x  # the result of a session; `run` waits for the streams that it was handed to
        return as_given(x, self._memory.import_array)

    def run(
        self,
        session: "ort.InferenceSession | EncodeAndSearch",
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[TensorValue]:
        """Run a graph block by block and return some of its outputs.

        They are tensors on the GPU if the first input is, or else arrays on the host.
        """
        on_gpu = isinstance(feeds[spec.inputs[0].name], Tensor)
        waits = self._owns_stream or not on_gpu
        with self._card.exclusive():
            self._begin(feeds)
            # A batch in several blocks is not replayed: `cuda_graph` lists sizes of batches, not of blocks.
            can_replay = len(sizes) == 1 and not isinstance(session, EncodeAndSearch)
            replay = self._replays.find_or_create(session, spec, feeds, sizes[0]) if can_replay else None
            forms = [replay.forms[name] for name in names] if replay else output_forms(spec, feeds, names)
            results: list[TensorValue] = []
            if on_gpu:
                results += self._memory.tensors(forms)
            else:
                results += self._pinned.arrays([(shape, DTYPES[dtype].numpy) for shape, dtype in forms])
            try:
                if replay is not None:
                    self._queue_copies({name: feeds[name] for name in replay.inputs}, replay.inputs, waits)
                    replay.run()
                    self._queue_results([replay.outputs[name] for name in names], results)
                else:
                    self._run_blocks(session, spec, feeds, dict(zip(names, results, strict=True)), sizes, waits)
            finally:
                if waits:  # after an error, too: the caller may drop the session now, which queued work still uses
                    self._wait()
            self._memory.trim()
        return results

    def add(self, a: TensorValue, b: TensorValue) -> TensorValue:
        """Return the sum of two arrays with the same shape, dtype and device."""
        if not isinstance(a, Tensor):
            return np.add(a, b)
        with self._card.exclusive():
            self._begin({"a": a, "b": b})
            if a.dtype not in self._adders:
                self._adders[a.dtype] = self.load_model(read_adding_model(a.dtype), one_thread=True)
            (total,) = self._memory.tensors([(a.shape, a.dtype)])
            feeds = self._move_to_gpu({"x": a.reshape(-1), "y": b.reshape(-1)}, waits=self._owns_stream)
            self._run_bound(self._adders[a.dtype], feeds, {"z": total.reshape(-1)})
            if self._owns_stream:
                self._wait()
        return total

    def release_session(self, session: ort.InferenceSession) -> None:
        """Free the CUDA graphs of a session that is no longer used. A finalizer may call it."""
        self._card.defer(functools.partial(self._replays.release_session, session))

    def move_to_device_of(self, array: TensorValue, tensor: TensorValue) -> TensorValue:
        """Return `array` on the device of `tensor`, the GPU or the host."""
        if isinstance(array, Tensor) and not isinstance(tensor, Tensor):
            return array.numpy()
        if isinstance(tensor, Tensor) and not isinstance(array, Tensor):
            with self._card.exclusive():
                self._begin({})
                moved = self._move_to_gpu({"array": array}, waits=self._owns_stream)["array"]
                if self._owns_stream:
                    self._wait()
            return moved
        return array

    def close(self) -> None:
        """Free all GPU memory that no tensor still uses. All sessions must have been released."""
        with self._card.exclusive():
            if self._memory.closed:
                return
            self._wait()
            self._memory.idle = True
            self._adders.clear()
            self._search = None
            self._folded.close()
            self._weights.close()
            _closer(self._card, self._memory, self._owns_stream)()

    def _run_blocks(
        self,
        session: "ort.InferenceSession | EncodeAndSearch",
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        results: Mapping[str, TensorValue],
        sizes: Sequence[int],
        waits: bool,
    ) -> None:
        """Queue the blocks of a batch, and write their outputs to `results`, on the GPU or in pinned memory."""
        tokens, start = sum(sizes), 0
        for size in filter(None, sizes):  # an empty batch has one block of size 0
            block = slice(start, start + size)
            parts = feeds if size == tokens else slice_feeds(spec, feeds, tokens, block)
            rows = [result if size == tokens else result[block] for result in results.values()]
            written = [row for row in rows if isinstance(row, Tensor)]
            targets = written or self._memory.tensors([(row.shape, str(row.dtype)) for row in rows])
            bound = dict(zip(results, targets, strict=True))
            self._run_block(session, self._move_to_gpu(parts, waits), bound, size)
            if not written:
                self._queue_results(targets, rows)
            start += size

    def _run_block(
        self,
        session: "ort.InferenceSession | EncodeAndSearch",
        feeds: Mapping[str, TensorValue],
        targets: Mapping[str, Tensor],
        tokens: int,
    ) -> None:
        """Queue a block whose inputs are on the GPU."""
        if not isinstance(session, EncodeAndSearch):
            self._run_bound(session, feeds, targets, tokens)
            return
        (acts,) = self._memory.tensors([((tokens, self._sae.d_sae), self._sae.dtype)])
        given = {name: feed for name, feed in feeds.items() if name != K}
        self._run_bound(session.encoder, given, {HOOK_ACTS_POST: acts}, tokens)
        self._run_bound(session.search, {HOOK_ACTS_POST: acts, FIRST_IDS: session.first_ids, K: feeds[K]}, targets)

    def _run_bound(
        self,
        session: ort.InferenceSession,
        feeds: Mapping[str, TensorValue],
        targets: Mapping[str, Tensor],
        tokens: int = 0,
    ) -> None:
        session, more = self._folded.choose(session, tokens, self._start)
        session.run_with_iobinding(self._bindings.find_or_bind(session, {**feeds, **more}, targets), run_options())

    def _move_to_gpu(self, feeds: Mapping[str, TensorValue], waits: bool) -> dict[str, TensorValue]:
        """Return the inputs, copied to the GPU where they are on the host; except `k`, which the host reads."""
        on_host = {name: feed for name, feed in feeds.items() if not isinstance(feed, Tensor) and name != K}
        if not on_host:
            return dict(feeds)
        shapes = [(feed.shape, str(feed.dtype)) for feed in on_host.values()]
        targets = dict(zip(on_host, self._memory.tensors(shapes), strict=True))
        self._queue_copies(on_host, targets, waits)
        return {**feeds, **targets}

    def _queue_copies(self, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor], waits: bool) -> None:
        """Queue copies of inputs to the GPU.

        Args:
            feeds: Inputs by name, on the GPU or on the host.
            targets: Tensors on the GPU to copy to, by name.
            waits: Whether the call waits for the stream at its end. If so, host inputs go through pinned memory, which
                the GPU reads later and which therefore has to stay alive until then. If not, they are copied
                to pageable memory, which the driver reads before it returns; the caller's array may itself be pinned.
        """
        host_arrays = {name: np.array(feed, order="C", copy=not waits or None)
                 for name, feed in feeds.items() if not isinstance(feed, Tensor)}  # fmt: skip
        if waits:
            pinned = self._staging.arrays([(array.shape, array.dtype) for array in host_arrays.values()])
            for name, array in zip(host_arrays, pinned, strict=True):
                np.copyto(array, host_arrays[name])
                host_arrays[name] = array
            self._staged += pinned
        for name, feed in feeds.items():
            source = feed.pointer if isinstance(feed, Tensor) else host_arrays[name].ctypes.data
            self._card.copy(targets[name].pointer, source, targets[name].nbytes, self.stream)

    def _queue_results(self, sources: Sequence[Tensor], results: Sequence[TensorValue]) -> None:
        """Queue copies of outputs to the results of a call, on the GPU or in pinned memory."""
        targets = [result for result in results if isinstance(result, Tensor)]
        for target, source, nbytes in join_neighbours(targets, sources) if targets else ():
            self._card.copy(target, source, nbytes, self.stream)
        arrays = [result for result in results if not isinstance(result, Tensor)]
        for array, tensor in zip(arrays, sources if arrays else (), strict=True):
            self._card.copy(array.ctypes.data, tensor.pointer, tensor.nbytes, self.stream)

    def _begin(self, feeds: Mapping[str, TensorValue]) -> None:
        """Prepare for work on the stream: it waits for every stream that may still write the memory of an input."""
        self._memory.check_open()
        self._memory.idle = False
        for feed in feeds.values():
            if isinstance(feed, Tensor):
                feed.settle(self.stream)

    def _wait(self) -> None:
        self._card.synchronize(self.stream)
        self._memory.idle = self._owns_stream
        self._staged.clear()


def _wait_for(card: Card, stream: int, kept: object) -> None:
    """Wait for the work of a stream, or for everything if it was destroyed. `kept` only lives until then."""
    try:
        card.synchronize(stream)
    except SAEError:
        card.synchronize_all()


def _closer(card: Card, memory: DeviceMemory, own_stream: bool) -> Callable[[], None]:
    """Return a function that frees a session's memory, and its own stream; a second call does nothing."""

    def close() -> None:
        if not memory.closed:
            if own_stream:
                card.synchronize(memory.stream)
                memory.idle = True
            memory.close()
            if own_stream:
                card.destroy_stream(memory.stream)

    return close

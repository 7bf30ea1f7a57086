"""Running graphs on a GPU: arrays of the device where they are, arrays of the host through pinned memory.

Everything is queued on one stream, the session's own or the caller's:

    input of the device   `__dlpack__(stream=...)` lets the stream wait for what its library has still to write
    input of the host     is copied to pinned memory, and from there by the card
    result                written where it stays; for a host caller copied by the card to pinned memory, which the
                          caller's array is made of

With the session's own stream a call returns when its results are there. On a caller's stream a call with arrays of the
device returns at once, and what the caller queues behind it sees the results. What another stream does with a tensor
that it was handed, also an edit in place, comes before the next call that is given the tensor.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ...arrays import dlpack
from ...arrays.dtypes import DTYPES
from ...arrays.pool import BufferPool
from ...arrays.tensor import Array, Tensor, TensorValue, as_given
from ...artifact.folder import Artifact
from ...artifact.manifest import GraphSpec
from ...artifact.names import K
from ...errors import InputError, SAEError
from ..blocks import dimensions_of, part_of
from ..options import TF32, Options, stream_handle
from ..start import CUDA, Device, start_session
from .adding import adding_model
from .binding import NOT_CAPTURED, bind, on_device, run_options
from .driver import Card, driver
from .memory import KEPT_CALLS, DeviceMemory
from .replay import Replays
from .weights import DeviceWeights


class CudaBackend:
    """A GPU's side of a session. Calls from several threads at once are safe; the stream carries them out in turn.

    Attributes:
        stream: the address of the stream on which everything is queued.

    Args:
        device: which GPU.
        options: of the session.
        artifact: whose graphs are run.
        block_tokens: the most tokens that are run at a time.
    """

    def __init__(self, device: Device, options: Options, artifact: Artifact, block_tokens: int) -> None:
        self._device = device
        self._options = options
        self._card = driver().card(device.index)
        self._own = options.stream is None
        self.stream = self._card.stream() if self._own else stream_handle(options.stream)
        if options.cuda_graph and self.stream == dlpack.LEGACY_STREAM:
            raise InputError(
                "stream is CUDA's default stream, on which no graph can be captured. With cuda_graph, pass one that "
                "was made for it, such as torch.cuda.Stream()."
            )
        self._memory = DeviceMemory(self._card, self.stream, keep=options.arena)
        self._pinned = BufferPool(options.arena, self._card.pinned, KEPT_CALLS)
        self._staging = BufferPool(options.arena, self._card.pinned, KEPT_CALLS)
        self._staged: list[Array] = []
        self._weights = DeviceWeights(artifact.path / artifact.manifest.weights, self._memory)
        self._replays = Replays(self._memory, options.cuda_graph)
        self._adders: dict[str, ort.InferenceSession] = {}
        # A session that is dropped without being closed gives its memory back, too.
        weakref.finalize(self, self._card.defer, _closing(self._card, self._memory, self._own)).atexit = False

    def cuda_options(self) -> dict[str, str]:
        """Return the options of ONNX Runtime's CUDA provider.

        Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
        """
        options = {
            "device_id": str(self._device.index),
            # TF32 rounds the factors of a product to 10 bits; PyTorch's default is full float32, and so is this one's.
            "use_tf32": "1" if self._options.precision == TF32 else "0",
            "user_compute_stream": str(self.stream),
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles
        }
        if self._options.memory_limit is not None:
            options["gpu_mem_limit"] = str(self._options.memory_limit)
        if self._options.cuda_graph:
            options["enable_cuda_graph"] = "1"
        return options

    def start(self, graph: str, path: Path) -> ort.InferenceSession:
        """Return a session of a graph of the artifact; its parameters are on the card once for all of them."""
        with self._card.exclusive():
            self._check_open()
            return start_session(
                str(path), self._device, self.cuda_options(), threads=self._options.threads,
                arena=self._options.arena, weights=self._weights.values(),
            )  # fmt: skip

    def given(self, x: Any) -> TensorValue:
        """Return what a caller gave: of the device a `Tensor`, where it is; of the host an array.

        Raises:
            InputError: it is on another GPU, or not contiguous.
        """
        if isinstance(x, Tensor) and x.device == f"cuda:{self._card.index}":
            return x  # of a session; `run` waits for whoever it was handed to
        return as_given(x, self._memory.taken)

    def run(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[TensorValue]:
        """Run a graph on one block of tokens after the other and return its outputs `names`.

        They are where the first input is: on the device, or arrays of the host.
        """
        tokens, dimensions = sum(sizes), dimensions_of(spec, feeds)
        tensors = {tensor.name: tensor for tensor in spec.outputs}
        kinds = [tensors[name].dtype for name in names]
        forms = [tuple(dimensions[d] if isinstance(d, str) else d for d in tensors[name].shape) for name in names]
        stays = on_device(feeds[spec.inputs[0].name])
        waits = self._own or not stays
        with self._card.exclusive():
            self._check_open()
            self._settle(feeds)
            whole = list(zip(forms, kinds, strict=True))
            results = self._memory.tensors(whole) if stays else []
            arrays = [] if stays else self._pinned.arrays([(form, DTYPES[kind].numpy) for form, kind in whole])
            start = 0
            for size in filter(None, sizes):  # of no tokens there is nothing to run
                block = slice(start, start + size)
                parts = part_of(spec, feeds, tokens, block)
                targets = [result[block] for result in results] if stays else \
                    self._memory.tensors([((size, *form[1:]), kind) for form, kind in whole])  # fmt: skip
                self._run_block(session, spec, parts, dict(zip(names, targets, strict=True)), size, waits)
                for target, array in zip(targets, arrays, strict=False):  # of the device there are no arrays
                    self._card.copy(array[block].ctypes.data, target.pointer, target.nbytes, self.stream)
                start += size
            if waits:
                self._wait()
            self._memory.trim()
        return list(results) if stays else list(arrays)

    def add(self, a: TensorValue, b: TensorValue) -> TensorValue:
        """Return the sum of two tensors of one shape and dtype, where they are."""
        if not isinstance(a, Tensor):
            return np.add(a, b)
        with self._card.exclusive():
            self._check_open()
            if a.dtype not in self._adders:
                cuda = Device(CUDA, self._device.index)
                self._adders[a.dtype] = start_session(adding_model(a.dtype), cuda, self.cuda_options())
            (total,) = self._memory.tensors([(a.shape, a.dtype)])
            feeds = self._to_device({"x": a.reshape(-1), "y": b.reshape(-1)}, waits=self._own)
            self._settle(feeds)
            self._run_bound(self._adders[a.dtype], feeds, {"z": total.reshape(-1)})
            if self._own:
                self._wait()
        return total

    def forget(self, session: ort.InferenceSession) -> None:
        """Free what belongs to a session that is no longer used."""
        with self._card.exclusive():
            self._replays.forget(session)

    def move_to_device_of(self, array: TensorValue, tensor: TensorValue) -> TensorValue:
        """Return an array where another one is: on the device, or on the host."""
        if isinstance(array, Tensor) and not on_device(tensor):
            return array.numpy()
        if on_device(tensor) and not on_device(array):
            with self._card.exclusive():
                moved = self._to_device({"array": array}, waits=self._own)["array"]
                if self._own:
                    self._wait()
            return moved
        return array

    def close(self) -> None:
        """Free the card's memory but what tensors still hold. The sessions have to be gone."""
        with self._card.exclusive():
            if self._memory.closed:
                return
            self._wait()
            self._adders.clear()
            self._replays.close()
            self._weights.close()
            _closing(self._card, self._memory, self._own)()

    def _run_block(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        targets: Mapping[str, Tensor],
        tokens: int,
        waits: bool,
    ) -> None:
        replay = self._replays.of(session, spec, feeds, tokens)
        if replay is None:
            self._run_bound(session, self._to_device(feeds, waits), targets)
            return
        self._copy_in({name: feeds[name] for name in replay.inputs}, replay.inputs, waits)
        replay.run()
        for name, target in targets.items():
            self._card.copy(target.pointer, replay.outputs[name].pointer, target.nbytes, self.stream)

    def _run_bound(
        self, session: ort.InferenceSession, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor]
    ) -> None:
        binding = bind(session, feeds, targets, self._card.index)
        session.run_with_iobinding(binding, run_options(NOT_CAPTURED if self._options.cuda_graph else None))

    def _to_device(self, feeds: Mapping[str, TensorValue], waits: bool) -> dict[str, TensorValue]:
        """Return the inputs with those of the host copied to the card; but k, which is read by the host."""
        hosts = {name: feed for name, feed in feeds.items() if not on_device(feed) and name != K}
        forms = [(feed.shape, str(feed.dtype)) for feed in hosts.values()]
        targets = dict(zip(hosts, self._memory.tensors(forms), strict=True))
        self._copy_in(hosts, targets, waits)
        return {**feeds, **targets}

    def _copy_in(self, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor], waits: bool) -> None:
        """Queue copies of inputs to the card.

        From pinned memory the card reads later, so that it has to stay until the wait at the end. Where there is none
        the array is copied to memory that is not pinned, which the driver reads before it returns.
        """
        hosts = {name: np.array(feed, order="C", copy=not waits or None)
                 for name, feed in feeds.items() if not on_device(feed)}  # fmt: skip
        if waits:
            pinned = self._staging.arrays([(array.shape, array.dtype) for array in hosts.values()])
            for name, array in zip(hosts, pinned, strict=True):
                np.copyto(array, hosts[name])
                hosts[name] = array
            self._staged += pinned
        for name, feed in feeds.items():
            source = feed.pointer if isinstance(feed, Tensor) else hosts[name].ctypes.data
            self._card.copy(targets[name].pointer, source, targets[name].nbytes, self.stream)

    def _settle(self, feeds: Mapping[str, TensorValue]) -> None:
        """Let the stream wait for whoever has an input's memory."""
        for feed in feeds.values():
            if isinstance(feed, Tensor):
                feed.settle(self.stream)

    def _check_open(self) -> None:
        if self._memory.closed:
            raise SAEError("The session is closed.")

    def _wait(self) -> None:
        self._card.synchronize(self.stream)
        self._staged.clear()


def _closing(card: Card, memory: DeviceMemory, own_stream: bool) -> Callable[[], None]:
    """Return what frees a session's memory, and its stream if it is its own; the second time it does nothing."""

    def close() -> None:
        if not memory.closed:
            if own_stream:
                card.synchronize(memory.stream)
            memory.close()
            if own_stream:
                card.destroy_stream(memory.stream)

    return close

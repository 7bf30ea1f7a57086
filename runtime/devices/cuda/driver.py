"""The NVIDIA driver through ctypes: the GPUs of the machine, and their streams, events and memory.

ONNX Runtime's Python API offers neither streams to wait for nor pinned memory, and a service would have to install any
library that does. The driver is on every machine with a GPU.

Source: CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/; names, `_v2` suffixes and flags as in `cuda.h`.
"""

import contextlib
import ctypes
import functools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...arrays.tensor import Array
from ...errors import ProviderError, SAEError

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream and the legacy default stream do not wait for each other
NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do does not break the capture
COPY_NODE, HOST_NODE = 1, 3  # CU_GRAPH_NODE_TYPE_MEMCPY, CU_GRAPH_NODE_TYPE_HOST
COPY_WORDS, SOURCE_TYPE = 25, 4  # of the 64-bit words of a CUDA_MEMCPY3D, the number and the one with srcMemoryType
DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE

POINTER = ctypes.c_uint64
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (c_void_p, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamGetFlags": (c_void_p, c_void_p),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (POINTER,),
    "cuMemAllocHost_v2": (c_void_p, c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyAsync": (POINTER, POINTER, c_size_t, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphGetNodes": (c_void_p, c_void_p, c_void_p),
    "cuGraphNodeGetType": (c_void_p, c_void_p),
    "cuGraphMemcpyNodeGetParams": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
"""The driver's functions that are used, with the types of their arguments. Each returns a `CUresult`, 0 for success."""


@dataclass(frozen=True)
class GPU:
    """The properties of a GPU.

    Attributes:
        index: CUDA's index of the GPU among those that `CUDA_VISIBLE_DEVICES` shows to this process.
        name: Name of the GPU, such as "NVIDIA H100 80GB HBM3".
        capability: Compute capability, such as (9, 0).
        memory: Size of its memory in bytes.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory: int


class Driver:
    """The NVIDIA driver of this machine.

    Args:
        library: The loaded `libcuda`.

    Raises:
        SAEError: The driver does not initialize.
        AttributeError: The library lacks a function: it is too old.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            SAEError: The function returned an error. The message quotes the driver's description.
        """
        result = getattr(self._library, name)(*arguments)
        if result:
            text = c_char_p()
            self._library.cuGetErrorString(result, byref(text))
            words = text.value.decode() if text.value else "unknown error"
            raise SAEError(f"{name} of the NVIDIA driver: error {result}, {words}.")

    @property
    def version(self) -> str:
        """The newest CUDA version that the driver runs, such as "13.0"."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def gpus(self) -> list[GPU]:
        """Return the GPUs that this process may use."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return [self._gpu(index) for index in range(count.value)]

    def _gpu(self, index: int) -> GPU:
        device, memory, name = c_int(), c_size_t(), (c_char * 256)()
        self.call("cuDeviceGet", byref(device), index)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDeviceTotalMem_v2", byref(memory), device)
        capability = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            value = c_int()
            self.call("cuDeviceGetAttribute", byref(value), attribute, device)
            capability.append(value.value)
        return GPU(index, name.value.decode(), (capability[0], capability[1]), memory.value)

    @functools.cache  # noqa: B019  # one per GPU, and there is one driver
    def card(self, index: int) -> "Card":
        """Return the card of a GPU; every call with the same index returns the same object."""
        device, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(device), index)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)  # the context that ONNX Runtime and PyTorch use
        return Card(self, index, context)


class Card:
    """The streams and memory of one GPU.

    Every other method is called inside `exclusive`, where the GPU's context is current, in any thread.

    `exclusive` lets in one thread at a time. The garbage collector may run at any point, also in a thread that captures
    a CUDA graph, where freeing memory would break the capture. So finalizers pass their work to `defer`.

    Args:
        driver: Driver of the machine.
        index: Index of the GPU.
        context: Primary context of the GPU.
    """

    def __init__(self, driver: Driver, index: int, context: c_void_p) -> None:
        self.index = index
        self._call = driver.call
        self._context = context
        self._lock = threading.RLock()
        self._depth = 0
        self._deferred: deque[Callable[[], None]] = deque()
        self._exclusive = _Exclusive(self)
        self._event: int | None = None

    def exclusive(self) -> "AbstractContextManager[object]":
        """Make the GPU's context current and keep other threads off the GPU inside the block. Blocks may be nested.

        Deferred work runs at the end of the outermost block.
        """
        return self._exclusive

    def defer(self, work: Callable[[], None], *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Run `work` at the end of the next or current block of `exclusive`; at once, if no thread is inside one.

        Its `SAEError` is ignored. When Python has ended, nothing is done: modules and the driver may be gone.
        """
        if ending():
            return
        self._deferred.append(work)
        self._run_deferred()

    def _run_deferred(self) -> None:
        """Run the deferred work, unless a thread is inside a block of `exclusive`, at whose end it runs."""
        with contextlib.suppress(SAEError):  # at exit, the driver may already be gone
            while self._deferred and self._lock.acquire(blocking=False):
                try:
                    if self._depth:
                        return
                    with self._exclusive:
                        pass
                finally:
                    self._lock.release()

    def stream(self) -> int:
        """Create a stream that does not synchronize with the legacy default stream, and return its address."""
        return self._create("cuStreamCreate", NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream. Work that is queued on it still runs."""
        self._call("cuStreamDestroy_v2", stream)

    def is_non_blocking(self, stream: int) -> bool:
        """Tell whether a stream and the legacy default stream do not wait for each other."""
        flags = c_uint()
        self._call("cuStreamGetFlags", stream, byref(flags))
        return bool(flags.value & NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until all work that is queued on a stream is done."""
        self._call("cuStreamSynchronize", stream)

    def order(self, first: int, then: int) -> None:
        """Make work queued on `then` from now on wait for the work queued on `first` so far."""
        if first == then:
            return
        if self._event is None:
            self._event = self._create("cuEventCreate", NO_TIMING)
        # A wait is for what was recorded when it was queued, so one event serves every pair of streams.
        self._call("cuEventRecord", self._event, first)
        self._call("cuStreamWaitEvent", then, self._event, 0)

    def synchronize_all(self) -> None:
        """Wait until all work that is queued on the GPU is done."""
        self._call("cuCtxSynchronize")

    def allocate(self, nbytes: int) -> int:
        """Allocate GPU memory and return its address.

        Raises:
            SAEError: The GPU is out of memory.
        """
        return self._create("cuMemAlloc_v2", max(1, nbytes))

    def free(self, pointer: int) -> None:
        """Free GPU memory. Queued work must not use it any more."""
        self._call("cuMemFree_v2", pointer)

    def pinned(self, nbytes: int) -> Array:
        """Return pinned host memory as a uint8 array. The GPU copies it without the CPU."""
        pointer = self._create("cuMemAllocHost_v2", max(1, nbytes))
        return np.asarray(_Pinned(self, pointer, nbytes))

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy of `nbytes` bytes between two addresses, each on this GPU or on the host."""
        if nbytes:
            self._call("cuMemcpyAsync", target, source, nbytes, stream)

    def capture(self, stream: int, queue: Callable[[], object]) -> int:
        """Return a CUDA graph of the work that `queue` queues on a stream. The work is not run yet.

        Raises:
            SAEError: Work cannot be captured, such as waiting for the GPU, or the host takes part in it: each launch
                would copy what the memory of the host holds by then, and free again what the host frees after the work.
            Exception: As raised by `queue`.
        """
        captured, graph = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        try:
            try:
                queue()
            except BaseException:
                with contextlib.suppress(SAEError):  # it ends the capture, whatever it returns
                    self._call("cuStreamEndCapture", stream, byref(captured))
                raise
            self._call("cuStreamEndCapture", stream, byref(captured))
            if any(map(self._needs_host, self._nodes(captured))):
                raise SAEError("The host takes part in the work, which a CUDA graph cannot repeat.")
            self._call("cuGraphInstantiateWithFlags", byref(graph), captured, 0)
        finally:
            if captured:
                self._call("cuGraphDestroy", captured)
        return graph.value or 0

    def _nodes(self, graph: c_void_p) -> Iterable[int]:
        count = c_size_t()
        self._call("cuGraphGetNodes", graph, None, byref(count))
        nodes = (c_void_p * count.value)()
        self._call("cuGraphGetNodes", graph, nodes, byref(count))
        return nodes

    def _needs_host(self, node: int) -> bool:
        kind, copy = c_int(), (c_ulonglong * COPY_WORDS)()
        self._call("cuGraphNodeGetType", node, byref(kind))
        if kind.value == COPY_NODE:
            self._call("cuGraphMemcpyNodeGetParams", node, byref(copy))
        copies_from_host = kind.value == COPY_NODE and copy[SOURCE_TYPE] & 0xFFFFFFFF != DEVICE_MEMORY
        return kind.value == HOST_NODE or copies_from_host

    def launch(self, graph: int, stream: int) -> None:
        """Queue the work of a CUDA graph on a stream."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a CUDA graph. Work of it that is queued still runs."""
        self._call("cuGraphExecDestroy", graph)

    def _create(self, name: str, argument: int) -> int:
        """Call a driver function that creates an object, and return its handle or address."""
        handle = c_void_p()
        self._call(name, byref(handle), argument)
        return handle.value or 0


class _Exclusive:
    """The block of `Card.exclusive`. A call enters several, and a generator's context takes five times as long."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def __enter__(self) -> None:
        card = self._card
        card._lock.acquire()
        if not card._depth:
            try:
                card._call("cuCtxPushCurrent_v2", card._context)
            except BaseException:
                card._lock.release()
                raise
        card._depth += 1

    def __exit__(self, *_: object) -> None:
        card = self._card
        is_outermost = card._depth == 1
        try:
            if is_outermost:
                self._finish()
        finally:
            card._depth -= 1
            card._lock.release()
        if is_outermost and card._deferred:  # since `_finish` looked, by a thread that did not get the lock
            card._run_deferred()

    def _finish(self) -> None:
        """Run the deferred work, and make the context current again that was current before the block."""
        card = self._card
        try:
            while card._deferred:
                with contextlib.suppress(SAEError):
                    card._deferred.popleft()()
        finally:
            card._call("cuCtxPopCurrent_v2", byref(c_void_p()))


class _Pinned:
    """Pinned memory that is freed when its last array dies."""

    def __init__(self, card: Card, pointer: int, nbytes: int) -> None:
        self._card, self._pointer = card, pointer
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "shape": (nbytes,), "typestr": "|u1"}

    def __del__(self) -> None:
        card, pointer = self._card, self._pointer
        card.defer(lambda: card._call("cuMemFreeHost", pointer))


@functools.cache
def driver() -> Driver:
    """Return the NVIDIA driver of this machine, loading it at the first call.

    Raises:
        ProviderError: The driver is missing, or it finds no GPU.
    """
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            break
    else:
        raise ProviderError(
            f"no NVIDIA driver ({LIBRARIES[0]} is missing; install it, or start a container with its GPUs: "
            "docker run --gpus all)"
        )
    try:
        return Driver(library)
    except (SAEError, AttributeError) as error:
        raise ProviderError(f"the NVIDIA driver does not start: {error}") from error

"""NVIDIA's driver, in ctypes: which GPUs there are, and their streams, events and memory.

ONNX Runtime's Python API has no stream to wait for and no pinned memory, and every library that has them is one that a
service would have to install. The driver is there wherever there is a GPU.

Source: CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/; names, `_v2` suffixes and flags as in `cuda.h`.
"""

import contextlib
import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...arrays.tensor import Array
from ...errors import ProviderError, SAEError

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the legacy default stream does not wait for it, nor it for that one
NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

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
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (POINTER,),
    "cuMemAllocHost_v2": (c_void_p, c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyAsync": (POINTER, POINTER, c_size_t, c_void_p),
}
"""What is called, and with what; each returns a `CUresult`, 0 for success."""


@dataclass(frozen=True)
class GPU:
    """A card.

    Attributes:
        index: as CUDA counts those that `CUDA_VISIBLE_DEVICES` lets this process see.
        name: such as "NVIDIA H100 80GB HBM3".
        capability: the compute capability, such as (9, 0).
        memory: in bytes.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory: int


class Driver:
    """The driver of this machine."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            SAEError: it returned an error; the message is the driver's.
        """
        result = getattr(self._library, name)(*arguments)
        if result:
            text = c_char_p()
            self._library.cuGetErrorString(result, byref(text))
            words = text.value.decode() if text.value else "unknown error"
            raise SAEError(f"{name} of the NVIDIA driver: error {result}, {words}.")

    @property
    def version(self) -> str:
        """The newest CUDA that the driver runs, such as "13.0"."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def gpus(self) -> list[GPU]:
        """Return the cards that this process may use."""
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

    @functools.cache  # noqa: B019  # one for each card, and there is one driver
    def card(self, index: int) -> "Card":
        """Return a card to work with, the same for all who ask."""
        device, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(device), index)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)  # the one that ONNX Runtime and PyTorch use
        return Card(self, index, context)


class Card:
    """A GPU's streams and memory. What a method is called on from any thread is on this card, whichever is current.

    While a CUDA graph is captured, nothing may be queued, allocated, freed or waited for on the card by another thread.
    So whoever works on it does so inside `exclusive`, and what the garbage collector finds, at any point of any thread,
    is put off by `defer` until nobody works.
    """

    def __init__(self, driver: Driver, index: int, context: c_void_p) -> None:
        self.index = index
        self._driver = driver
        self._context = context
        self._lock = threading.RLock()
        self._depth = 0
        self._put_off: deque[Callable[[], None]] = deque()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let no other thread work on the card meanwhile; then do what was put off."""
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                self._run_deferred()

    def defer(self, work: Callable[[], None]) -> None:
        """Do something as soon as nobody works on the card, which may be now; errors have nobody to go to."""
        self._put_off.append(work)
        if self._lock.acquire(blocking=False):
            try:
                self._run_deferred()
            finally:
                self._lock.release()

    def _run_deferred(self) -> None:
        while self._depth == 0 and self._put_off:
            with contextlib.suppress(
                SAEError
            ):  # at the end of a process the driver may be gone, and all memory with it
                self._put_off.popleft()()

    def stream(self) -> int:
        """Return a new stream, which no other one waits for."""
        return self._create("cuStreamCreate", NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream; what is queued on it is still carried out."""
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all that is queued on a stream is done."""
        self._call("cuStreamSynchronize", stream)

    def order(self, first: int, then: int) -> None:
        """Let what is queued on `then` from here on wait for what is queued on `first` so far."""
        if first == then:
            return
        event = self._create("cuEventCreate", NO_TIMING)
        self._call("cuEventRecord", event, first)
        self._call("cuStreamWaitEvent", then, event, 0)
        self._call("cuEventDestroy_v2", event)  # once it has come to pass

    def synchronize_all(self) -> None:
        """Wait until all that is queued on the card is done."""
        self._call("cuCtxSynchronize")

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory of the card.

        Raises:
            SAEError: there is not as much left.
        """
        return self._create("cuMemAlloc_v2", max(1, nbytes))

    def free(self, pointer: int) -> None:
        """Free memory of the card; nothing that is queued may still use it."""
        self._call("cuMemFree_v2", pointer)

    def pinned(self, nbytes: int) -> Array:
        """Return uint8 memory of the host that the system cannot move, so that the card copies it by itself."""
        pointer = self._create("cuMemAllocHost_v2", max(1, nbytes))
        return np.asarray(_Pinned(self, pointer, nbytes))

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy between any two addresses, of this card or of the host."""
        if nbytes:
            self._call("cuMemcpyAsync", target, source, nbytes, stream)

    def _create(self, name: str, argument: int) -> int:
        """Call a function that makes something, and return its handle or address."""
        handle = c_void_p()
        self._call(name, byref(handle), argument)
        return handle.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        with self._current():
            self._driver.call(name, *arguments)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))


class _Pinned:
    """Memory that is freed when the last array on it is gone."""

    def __init__(self, card: Card, pointer: int, nbytes: int) -> None:
        self._card, self._pointer = card, pointer
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "shape": (nbytes,), "typestr": "|u1"}

    def __del__(self) -> None:
        card, pointer = self._card, self._pointer
        card.defer(lambda: card._call("cuMemFreeHost", pointer))


@functools.cache
def driver() -> Driver:
    """Return the driver of this machine.

    Raises:
        ProviderError: there is none, or it finds no GPU.
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

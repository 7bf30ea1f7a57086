"""`BufferPool`: memory of large results, reused once the last array in it is gone.

The first write to fresh memory is slow: the system clears every page, and may first have to free others. For a batch in
blocks this can be half of the time.
"""

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .tensor import Array


class _Lease:
    """The base object of an array and of all its views; it dies when none of them is left."""

    def __init__(self, buffer: Array) -> None:
        self.__array_interface__ = buffer.__array_interface__


def _of_the_system(nbytes: int) -> Array:
    return np.empty(nbytes, np.uint8)


class BufferPool:
    """Makes arrays, and reuses the buffer of an array when its last view is gone. Safe to use from several threads.

    Args:
        keep: Whether to keep returned buffers.
        allocate: Function that returns a uint8 array of the given number of bytes.
        calls: Number of calls for which an unused buffer is kept; None keeps at most as many bytes as the arrays of the
            last call take.
    """

    def __init__(self, keep: bool, allocate: Callable[[int], Array] = _of_the_system, calls: int | None = None) -> None:
        self._keep = keep
        self._allocate = allocate
        self._calls = calls
        self._call = 0
        self._free: list[tuple[int, Array]] = []  # with the number of the call in which it was returned
        self._lock = threading.Lock()

    def arrays(self, forms: Sequence[tuple[Sequence[int], np.dtype[Any]]]) -> list[Array]:
        """Return a writable array of unspecified content for each shape and dtype. The caller may keep it."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in forms]
        with self._lock:
            buffers = [self._taken(size) for size in sizes]
            self._call += 1
            while self._free and self._is_too_much(sum(sizes)):
                self._free.pop(0)
        return [_array(self, buffer, shape, dtype) for buffer, (shape, dtype) in zip(buffers, forms, strict=True)]

    @property
    def kept(self) -> int:
        """The number of bytes that are kept without being in use."""
        return sum(buffer.nbytes for _, buffer in list(self._free))

    def _is_too_much(self, wanted: int) -> bool:
        """Return whether the oldest kept buffer should be freed."""
        return self.kept > wanted if self._calls is None else self._call - self._free[0][0] > self._calls

    def _taken(self, size: int) -> Array:
        for i, (_, buffer) in enumerate(self._free):
            if buffer.nbytes == size:
                return self._free.pop(i)[1]
        return self._allocate(size)

    def _give_back(self, buffer: Array) -> None:
        # Without the lock: the garbage collector may call this in a thread that holds it.
        if self._keep:
            self._free.append((self._call, buffer))


def _array(memory: BufferPool, buffer: Array, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    lease = _Lease(buffer)
    weakref.finalize(lease, memory._give_back, buffer).atexit = False
    return np.asarray(lease).view(dtype).reshape(shape)

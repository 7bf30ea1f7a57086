"""Memory of large results, used again for the next ones when the last array in it is gone.

Fresh memory is slow to write for the first time: the system clears every page of it, and may first move others out of
the way. Of a batch in blocks that can be half of the time.
"""

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .tensor import Array


class _Lease:
    """What an array and all its views hold on to; when it goes, nobody can see the memory any more."""

    def __init__(self, buffer: Array) -> None:
        self.__array_interface__ = buffer.__array_interface__


def _of_the_system(nbytes: int) -> Array:
    return np.empty(nbytes, np.uint8)


class BufferPool:
    """Makes arrays. Safe to use from several threads.

    Args:
        keep: hold on to memory that was given back.
        allocate: makes uint8 memory of so many bytes.
        calls: for how many calls memory is kept that none of them uses; None keeps, from each call on, at most as much
            as its arrays take.
    """

    def __init__(self, keep: bool, allocate: Callable[[int], Array] = _of_the_system, calls: int | None = None) -> None:
        self._keep = keep
        self._allocate = allocate
        self._calls = calls
        self._call = 0
        self._free: list[tuple[int, Array]] = []  # with the number of the call when it came back
        self._lock = threading.Lock()

    def arrays(self, forms: Sequence[tuple[Sequence[int], np.dtype[Any]]]) -> list[Array]:
        """Return an array of unspecified content for each shape and dtype, the caller's to keep and to write to."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in forms]
        with self._lock:
            buffers = [self._taken(size) for size in sizes]
            self._call += 1
            while self._free and self._is_too_much(sum(sizes)):
                self._free.pop(0)
        return [_array(self, buffer, shape, dtype) for buffer, (shape, dtype) in zip(buffers, forms, strict=True)]

    @property
    def kept(self) -> int:
        """How many bytes are held without being in use."""
        return sum(buffer.nbytes for _, buffer in list(self._free))

    def _is_too_much(self, wanted: int) -> bool:
        """Tell whether the oldest memory that is kept should go."""
        return self.kept > wanted if self._calls is None else self._call - self._free[0][0] > self._calls

    def _taken(self, size: int) -> Array:
        for i, (_, buffer) in enumerate(self._free):
            if buffer.nbytes == size:
                return self._free.pop(i)[1]
        return self._allocate(size)

    def _give_back(self, buffer: Array) -> None:
        # Without the lock: the garbage collector may call this wherever a thread is, while it holds it, too.
        if self._keep:
            self._free.append((self._call, buffer))


def _array(memory: BufferPool, buffer: Array, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    lease = _Lease(buffer)
    weakref.finalize(lease, memory._give_back, buffer).atexit = False
    return np.asarray(lease).view(dtype).reshape(shape)

"""`BufferPool`: memory of large results, reused once the last array in it is gone.

The first write to fresh memory is slow: the system clears every page, and may first have to free others. For a batch in
blocks this can be half of the time.
"""

import contextlib
import math
import mmap
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .tensor import Array


class _Buffer:
    """A buffer, and its address, which takes numpy longer to tell than to make an array."""

    __slots__ = ("address", "array", "nbytes")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.nbytes = array.nbytes
        self.address: int = array.ctypes.data


class _Lease:
    """The base object of an array and of all its views. When none of them is left, it gives the buffer back."""

    __slots__ = ("__array_interface__", "_buffer", "_pool")

    def __init__(self, pool: "BufferPool", buffer: _Buffer, nbytes: int) -> None:
        self._pool = pool
        self._buffer = buffer
        self.__array_interface__ = {
            "version": 3, "data": (buffer.address, False), "shape": (nbytes,), "typestr": "|u1",
        }  # fmt: skip

    def __del__(self) -> None:
        self._pool.give_back(self._buffer)


_PRIVATE: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""How memory is mapped that a forked process does not share, as on Windows without saying so."""


def _of_the_system(nbytes: int) -> Array:
    """Return memory that goes back to the system as a whole when it is freed.

    The C library would keep parts of what threads free, so that a process with batches of many sizes would grow. The
    address is that of a page: a library may add up numbers in an order that depends on how they are aligned.

    Raises:
        MemoryError: The system does not have that much memory.
    """
    try:
        memory = mmap.mmap(-1, max(nbytes, 1), **_PRIVATE)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):  # pages of 2 MB take a tenth of the time to clear
        with contextlib.suppress(OSError):  # of a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:nbytes]


class BufferPool:
    """Makes arrays, and reuses the buffer of an array when its last view is gone. Safe to use from several threads.

    Args:
        keep: Whether to keep returned buffers.
        allocate: Function that returns a uint8 array of the given number of bytes.
        calls: Number of calls of `arrays` for which an unused buffer is kept.
    """

    def __init__(self, keep: bool, allocate: Callable[[int], Array] = _of_the_system, *, calls: int) -> None:
        self._keep = keep
        self._allocate = allocate
        self._calls = calls
        self._call = 0
        self._free: list[tuple[int, _Buffer]] = []  # with the number of the call in which it was returned
        self._lock = threading.Lock()

    def arrays(self, forms: Sequence[tuple[Sequence[int], np.dtype[Any]]]) -> list[Array]:
        """Return a writable array of unspecified content for each shape and dtype. The caller may keep it.

        A call without forms counts as a call that needs no memory.
        """
        if not forms and not self._free:
            return []  # no buffer is taken, and none becomes older
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in forms]
        with self._lock:
            buffers = [self._taken(size) for size in sizes]
            self._call += 1
            while self._free and self._call - self._free[0][0] > self._calls:
                self._free.pop(0)
        return [
            np.asarray(_Lease(self, buffer, size)).view(dtype).reshape(shape)
            for buffer, size, (shape, dtype) in zip(buffers, sizes, forms, strict=True)
        ]

    @property
    def kept(self) -> int:
        """The number of bytes that are kept without being in use."""
        return sum(buffer.nbytes for _, buffer in list(self._free))

    def give_back(self, buffer: _Buffer) -> None:
        """Take back a buffer whose last array has died.

        It does not wait for the lock, which the thread in which the garbage collector calls this may hold.
        """
        if self._keep:
            self._free.append((self._call, buffer))

    def _taken(self, size: int) -> _Buffer:
        """Return the smallest unused buffer that holds `size` bytes and is at most twice as large, or a new one."""
        fits = [i for i, (_, buffer) in enumerate(self._free) if size <= buffer.nbytes <= 2 * size]
        if fits:  # of several, the last that was used, so that the others become old
            return self._free.pop(min(reversed(fits), key=lambda i: self._free[i][1].nbytes))[1]
        return _Buffer(self._allocate(size))

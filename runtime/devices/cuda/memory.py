"""GPU memory for inputs and results.

Memory is reused once its last tensor has died, in the order that the streams prescribe.
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...arrays import dlpack
from ...arrays.dtypes import DTYPES
from ...arrays.exchange import exchange_of
from ...arrays.tensor import Array, Tensor, check_contiguous
from ...errors import InputError, SAEError
from ..blocks import Form
from .driver import Card

KEPT_CALLS = 64
"""Number of calls for which unused memory is kept.

Batches of several sizes may alternate, and an allocation takes longer than running a small batch.
"""


LARGEST_SHARED = 1 << 20
"""Largest size in bytes of a piece of memory that tensors share.

It is in use as long as one of them is. So larger tensors, which would hold much memory, have pieces of their own.
"""

ALIGNMENT = 256  # as the driver aligns memory


class _Piece:
    """A piece of GPU memory.

    Attributes:
        pointer: Its address.
        nbytes: Its size in bytes.
        used: Number of the last call that used it.
        readers: Streams that its tensors were handed to. They may read the memory, and write it.
    """

    __slots__ = ("nbytes", "pointer", "readers", "used")

    def __init__(self, pointer: int, nbytes: int, used: int) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        self.used = used
        self.readers: set[int] = set()


class DeviceBuffer:
    """The owner of a tensor's memory on the GPU. The memory stays allocated as long as this object lives.

    Args:
        memory: Memory of the session.
        keeps: Object that holds the memory: another library's DLPack capsule, or a piece of the session's memory.
        readers: Streams that the memory was handed to. They may read it, and write it.
    """

    __slots__ = ("_keeps", "_memory", "readers")

    def __init__(self, memory: "DeviceMemory", keeps: object, readers: set[int]) -> None:
        self.readers = readers
        self._memory = memory
        self._keeps = keeps

    def ready_for(self, stream: int) -> None:
        """Make a stream wait for all work queued on the memory so far, and record that the stream has it."""
        self._memory.settle(stream, self.readers)
        self.readers.add(stream)

    def settle(self, stream: int) -> None:
        """Make a stream wait for the session's stream, and for the streams that the memory was handed to."""
        self._memory.settle(stream, self.readers)

    def to_host(self, pointer: int, nbytes: int) -> Array:
        """Return a copy of some of its bytes as a uint8 array."""
        return self._memory.to_host(pointer, nbytes, self.readers)


class _Lent(DeviceBuffer):
    """The owner of a tensor in a piece of the session's memory, which takes the piece back when this object dies."""

    __slots__ = ()
    _keeps: _Piece

    def __del__(self) -> None:
        self._memory.take_back(self._keeps)


class DeviceMemory:
    """Allocates tensors on a GPU that are written on one stream.

    Returned memory is written again on the same stream, and so after all work that is queued there. The next call also
    makes that stream wait for the other streams that the memory was handed to.

    Attributes:
        device: Name of the GPU, "cuda:N".
        idle: Whether all work that may write a tensor on the stream is known to be done. The session sets it. On a
            caller's stream that is when the session is closed, because the caller queues work there, too.

    Args:
        card: GPU that holds the memory.
        stream: Address of the stream that writes it.
        keep: Whether to keep returned memory for `KEPT_CALLS` calls.
    """

    def __init__(self, card: Card, stream: int, keep: bool) -> None:
        self.card = card
        self.stream = stream
        self.closed = False
        self.idle = False
        self.device = f"cuda:{card.index}"
        self._calls_kept = KEPT_CALLS if keep else 0
        self._call = 0
        self._returned: deque[_Piece] = deque()
        self._free: list[_Piece] = []

    def tensors(self, forms: Sequence[Form]) -> list[Tensor]:
        """Return an uninitialized tensor for each shape and dtype, inside `Card.exclusive`.

        Small tensors of one shape and dtype that follow each other share a piece of memory, and can be copied at once.

        Raises:
            SAEError: The GPU is out of memory.
        """
        self._sort_returned()
        tensors: list[Tensor] = []
        for shape, dtype, step, count in _pieces(tuple(forms), LARGEST_SHARED):
            piece = self._piece(step * count)
            owner = _Lent(self, piece, piece.readers)
            for i in range(count):
                tensors.append(Tensor(piece.pointer + i * step, shape, dtype, self.device, owner))
        return tensors

    def import_array(self, x: Any, index: int) -> Tensor:
        """Return a tensor that shares the memory of another library's array on the GPU.

        The stream may read it after `settle`.

        Args:
            x: The array.
            index: Index of the GPU that it is on.

        Raises:
            InputError: The array is not contiguous, or on another GPU, or its library refuses to export it.
            SAEError: The session is closed.
        """
        if index != self.card.index:
            raise InputError(
                f"The {type(x).__name__} is on cuda:{index}, this session on cuda:{self.card.index}. Copy it there, or "
                f'open the artifact with device="cuda:{index}".'
            )
        readers: set[int] = set()
        if (exchange := exchange_of(x)) is not None and (given := exchange.import_array(x, index)) is not None:
            self.check_open()
            imported, stream = given
            readers.add(stream)  # `settle` makes other streams wait for it
        else:
            with self.card.exclusive():
                self.check_open()
                self.idle = False  # the library may make the stream wait for its own work
                try:
                    imported = dlpack.import_capsule(x, self.stream)
                except BufferError as error:
                    raise InputError(f"The {type(x).__name__} cannot be read: {error}") from error
        check_contiguous(imported, x)
        owner = DeviceBuffer(self, imported, readers)
        return Tensor(imported.pointer, imported.shape, imported.dtype, self.device, owner)

    def settle(self, stream: int, readers: set[int]) -> None:
        """Make a stream wait for all work queued so far, by the session and by the readers on their streams."""
        others = readers - {stream}
        if self.idle and not others:
            return
        with self.card.exclusive():
            for before in others:
                self._order(before, stream)
            if not self.idle:
                self._order(self.stream, stream)

    def to_host(self, pointer: int, nbytes: int, readers: set[int]) -> Array:
        """Return a copy of GPU memory as a uint8 array, after all work queued here and by its readers."""
        host = np.empty(nbytes, np.uint8)
        with self.card.exclusive():
            stream = dlpack.LEGACY_STREAM if self.closed else self.stream
            self.settle(stream, readers)
            self.card.copy(host.ctypes.data, pointer, nbytes, stream)
            self.card.synchronize(stream)
        return host

    @property
    def kept(self) -> int:
        """Number of bytes that are allocated and not in use."""
        return sum(piece.nbytes for piece in [*self._free, *self._returned])

    def trim(self) -> None:
        """Free the memory that no recent call has used."""
        self._sort_returned()
        self._call += 1
        oldest = self._call - self._calls_kept
        if old := [piece for piece in self._free if piece.used < oldest]:
            self._free = [piece for piece in self._free if piece.used >= oldest]
            self._release(old)

    def close(self) -> None:
        """Free unused memory now, and the rest when it is returned. No call may queue work on the stream any more."""
        with self.card.exclusive():
            self.closed = True
            self._sort_returned()
            self._release(self._free)
            self._free = []

    def check_open(self) -> None:
        """Refuse to go on after `close`.

        Raises:
            SAEError: The session is closed.
        """
        if self.closed:
            raise SAEError("The session is closed.")

    def take_back(self, piece: _Piece) -> None:
        """Take back a piece whose tensor has died. The garbage collector may call this at any point of any thread."""
        self._returned.append(piece)
        if self.closed:
            self.card.defer(self.close)

    def _order(self, first: int, then: int) -> None:
        """Make one stream wait for another. If that one was destroyed, wait for everything on the GPU."""
        try:
            self.card.order(first, then)
        except SAEError:
            self.card.synchronize_all()

    def _piece(self, nbytes: int) -> _Piece:
        for i, piece in enumerate(self._free):
            if piece.nbytes == nbytes:
                piece.used = self._call
                return self._free.pop(i)
        try:
            return _Piece(self.card.allocate(nbytes), nbytes, self._call)
        except SAEError:
            if not self._free:
                raise
        self._release(self._free)  # memory kept for other sizes may be the memory that is missing
        self._free = []
        return _Piece(self.card.allocate(nbytes), nbytes, self._call)

    def _sort_returned(self) -> None:
        while self._returned:
            piece = self._returned.popleft()
            self._free.append(piece)
            if piece.readers:
                readers, piece.readers = piece.readers, set()
                for reader in readers:
                    self._order(reader, dlpack.LEGACY_STREAM if self.closed else self.stream)

    def _release(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            self.card.free(piece.pointer)  # the driver waits for all work that is queued on the GPU


@functools.lru_cache(maxsize=256)
def _pieces(forms: tuple[Form, ...], largest: int) -> list[tuple[tuple[int, ...], str, int, int]]:
    """Return the pieces of memory in which tensors lie: shape, dtype, step from one tensor to the next, and number."""
    pieces = []
    for (shape, dtype), same in itertools.groupby(forms):
        count = len(list(same))
        nbytes = math.prod(shape) * DTYPES[dtype].numpy.itemsize
        step = -(-nbytes // ALIGNMENT) * ALIGNMENT
        pieces += [(shape, dtype, step, count)] if count * step <= largest else count * [(shape, dtype, step, 1)]
    return pieces


def join_neighbours(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> list[tuple[int, int, int]]:
    """Return the copies of tensors of `DeviceMemory`, each as two addresses and a number of bytes.

    Neighbours that lie in one piece of memory on both sides, at the same distance, are copied at once.
    """
    copies: list[tuple[int, int, int]] = []
    owners: tuple[object, object] | None = None
    for target, source in zip(targets, sources, strict=True):
        together, owners = owners == (target.owner, source.owner), (target.owner, source.owner)
        if together:
            first, of, _ = copies[-1]
            if target.pointer - first == source.pointer - of:
                copies[-1] = first, of, target.pointer - first + target.nbytes
                continue
        copies.append((target.pointer, source.pointer, target.nbytes))
    return copies

"""Memory of a GPU for inputs and results, used again when the last tensor in it is gone, in the order of streams."""

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...arrays import dlpack
from ...arrays.tensor import Array, Tensor, check_contiguous
from ...errors import InputError, SAEError
from .driver import Card

KEPT_CALLS = 64
"""For how many calls memory is kept that none of them uses: batches of other sizes may come by turns, and to allocate
takes longer than to run a small one."""


@dataclass
class _Piece:
    """Memory of the card.

    Attributes:
        readers: the streams that tensors on it were handed to. They may read it, and write it.
        used: the number of the last call that used it.
    """

    pointer: int
    nbytes: int
    used: int
    readers: set[int] = field(default_factory=set)


class DeviceBuffer:
    """What keeps a tensor's memory alive: another library's DLPack capsule, or the memory of a result.

    Attributes:
        readers: the streams that it was handed to. They may read it, and write it.
    """

    def __init__(self, memory: "DeviceMemory", keeps: object, readers: set[int]) -> None:
        self.readers = readers
        self._memory = memory
        self._keeps = keeps

    def ready_for(self, stream: int) -> None:
        """Let a stream wait until what was queued before has written the memory, and remember that it has it."""
        self._memory.hand_over(stream, self.readers)

    def settle(self, stream: int) -> None:
        """Let a stream wait for the session's, and for those that it was handed to."""
        self._memory.settle(stream, self.readers)

    def to_host(self, pointer: int, nbytes: int) -> Array:
        """Return a copy of some of its bytes, uint8."""
        return self._memory.to_host(pointer, nbytes, self.readers)


class DeviceMemory:
    """Makes tensors on a card, written on one stream.

    Memory that comes back is written again on the same stream, and so after all that was queued on it; and it waits for
    the other streams that it was handed to, as far as they were queued at the next call.

    Args:
        card: of which the memory is.
        stream: on which it is written.
        keep: hold on to memory that came back, for `KEPT_CALLS` calls.
    """

    def __init__(self, card: Card, stream: int, keep: bool) -> None:
        self.card = card
        self.stream = stream
        self.closed = False
        self._calls_kept = KEPT_CALLS if keep else 0
        self._call = 0
        self._returned: deque[_Piece] = deque()
        self._free: list[_Piece] = []

    def tensors(self, forms: "list[tuple[tuple[int, ...], str]]") -> list[Tensor]:
        """Return a tensor of unspecified content for each shape and dtype.

        Raises:
            SAEError: the card has not as much memory left, or the session is closed.
        """
        with self.card.exclusive():
            self._check_open()
            self._sort_returned()
            return [self._tensor(shape, dtype) for shape, dtype in forms]

    def taken(self, x: Any) -> Tensor:
        """Return a tensor on the memory of an array of the device, which the stream may read.

        Raises:
            InputError: the array is not contiguous, or on another card, or its library does not hand it over.
            SAEError: the session is closed.
        """
        _, index = x.__dlpack_device__()
        if index != self.card.index:
            raise InputError(
                f"The {type(x).__name__} is on cuda:{index}, this session on cuda:{self.card.index}. Copy it there, or "
                f'open the artifact with device="cuda:{index}".'
            )
        with self.card.exclusive():
            self._check_open()
            try:
                taken = dlpack.import_capsule(x, self.stream)
            except BufferError as error:
                raise InputError(f"The {type(x).__name__} cannot be read: {error}") from error
        check_contiguous(taken, x)
        owner = DeviceBuffer(self, taken, set())
        return Tensor(taken.pointer, taken.shape, taken.dtype, f"cuda:{self.card.index}", owner)

    def hand_over(self, stream: int, readers: set[int]) -> None:
        """Let a stream wait for what is queued so far, here and by those who have the memory already."""
        with self.card.exclusive():
            self.settle(stream, readers)
            readers.add(stream)

    def settle(self, stream: int, readers: set[int]) -> None:
        """Let a stream wait for what is queued so far, here and by those who have the memory already."""
        with self.card.exclusive():
            for before in readers - {stream}:
                self._order(before, stream)
            if not self.closed:  # else all of it was waited for
                self.card.order(self.stream, stream)

    def to_host(self, pointer: int, nbytes: int, readers: set[int]) -> Array:
        """Return a copy of bytes of the card, uint8, once what is queued is done, here and by those who have them."""
        host = np.empty(nbytes, np.uint8)
        with self.card.exclusive():
            stream = dlpack.LEGACY_STREAM if self.closed else self.stream
            self.settle(stream, readers)
            self.card.copy(host.ctypes.data, pointer, nbytes, stream)
            self.card.synchronize(stream)
        return host

    @property
    def kept(self) -> int:
        """How many bytes are held without being in use."""
        return sum(piece.nbytes for piece in [*self._free, *self._returned])

    def trim(self) -> None:
        """Free what no call has used for long."""
        self._sort_returned()
        self._call += 1
        old = [piece for piece in self._free if self._call - piece.used > self._calls_kept]
        self._free = [piece for piece in self._free if self._call - piece.used <= self._calls_kept]
        self._release(old)

    def close(self) -> None:
        """Free what is not in use; what is, when it comes back. What is queued on the stream has to be done."""
        with self.card.exclusive():
            self.closed = True
            self._sort_returned()
            self._release(self._free)
            self._free = []

    def _check_open(self) -> None:
        if self.closed:
            raise SAEError("The session is closed.")

    def _order(self, first: int, then: int) -> None:
        """Let one stream wait for another, which may be gone: then for everything on the card."""
        try:
            self.card.order(first, then)
        except SAEError:
            self.card.synchronize_all()

    def _tensor(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        tensor = Tensor(0, shape, dtype, f"cuda:{self.card.index}", None)
        piece = self._piece(tensor.nbytes)
        block = DeviceBuffer(self, piece, piece.readers)
        weakref.finalize(block, self._take_back, piece).atexit = False
        return Tensor(piece.pointer, shape, dtype, tensor.device, block)

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
        self._release(self._free)  # what is kept for other sizes may be what is missing
        self._free = []
        return _Piece(self.card.allocate(nbytes), nbytes, self._call)

    def _take_back(self, piece: _Piece) -> None:
        # The garbage collector calls this wherever a thread is.
        self._returned.append(piece)
        if self.closed:
            self.card.defer(self.close)

    def _sort_returned(self) -> None:
        while self._returned:
            piece = self._returned.popleft()
            self._free.append(piece)
            readers, piece.readers = piece.readers, set()
            for reader in readers:
                self._order(reader, dlpack.LEGACY_STREAM if self.closed else self.stream)

    def _release(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            self.card.free(piece.pointer)  # waits for what is queued on the card

"""Tensor: memory that numpy cannot show, on a GPU or of bfloat16 numbers, which other libraries take by DLPack."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import dlpack
from .dtypes import BFLOAT16, DTYPES, narrowed, storage, widened

Array: TypeAlias = npt.NDArray[Any]


class Memory(Protocol):
    """What a tensor's memory does beside being there; see `runtime.devices.cuda.memory`."""

    def ready_for(self, stream: int) -> None:
        """Let a stream wait until what was queued before has written the memory."""

    def settle(self, stream: int) -> None:
        """Let a stream wait for all who may have written the memory."""

    def to_host(self, pointer: int, nbytes: int) -> Array:
        """Return a copy of some of its bytes, uint8."""


class Tensor:
    """A contiguous array with a shape, a dtype and a device, that speaks DLPack.

    `torch.from_dlpack(tensor)`, and the same of CuPy and JAX, take it without a copy. numpy's cannot, of a GPU or of
    bfloat16: `numpy()` copies it to the host, and what has no dtype in numpy comes as float32, which holds every one of
    its numbers.

    Attributes:
        shape: in numbers.
        dtype: its name: "float32", "float16", "bfloat16", "int64".
        device: "cpu" or "cuda:N".
        pointer: the address of the first number.
    """

    def __init__(self, pointer: int, shape: Sequence[int], dtype: str, device: str, owner: Any) -> None:
        self.pointer = pointer
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype
        self.device = device
        self._owner = owner  # of the memory: an array of the host, a `Memory` of a device

    @classmethod
    def of(cls, values: npt.ArrayLike, dtype: str) -> "Tensor":
        """Return a tensor of the host with the numbers of an array, rounded to a dtype."""
        return cls.of_bits(np.array(narrowed(values, dtype), order="C", copy=True), dtype)

    @classmethod
    def of_bits(cls, bits: Array, dtype: str) -> "Tensor":
        """Return a tensor of the host on an array that keeps its bits, C-contiguous, of `storage(dtype)`."""
        return cls(bits.ctypes.data, bits.shape, dtype, "cpu", bits)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """The bytes of a number."""
        return DTYPES[self.dtype].bits // 8

    @property
    def nbytes(self) -> int:
        """The bytes of all."""
        return self.size * self.itemsize

    def reshape(self, *shape: Any) -> "Tensor":
        """Return the same memory in another shape, given as numbers or as one tuple; one of them may be -1.

        Raises:
            ValueError: it has another number of numbers.
        """
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        # numpy knows the rules; an array of one number, seen everywhere, takes no memory.
        new = np.broadcast_to(np.empty((), np.int8), self.shape).reshape(wanted).shape if self.size else \
            np.empty(self.shape, np.int8).reshape(wanted).shape  # fmt: skip
        return Tensor(self.pointer, new, self.dtype, self.device, self._owner)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "Tensor":
        """Return some rows, one after the other; the memory is the same."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError("A Tensor is cut by a slice of rows, tensor[start:stop]; for more, take it by DLPack.")
        start, stop, _ = rows.indices(len(self))
        row = math.prod(self.shape[1:]) * self.itemsize
        shape = (max(0, stop - start), *self.shape[1:])
        return Tensor(self.pointer + start * row, shape, self.dtype, self.device, self._owner)

    def settle(self, stream: int) -> None:
        """Of a device: let a stream wait for all who may have written it, on their own streams."""
        self._owner.settle(stream)

    def bits(self) -> Array:
        """Return its bits as `storage(dtype)` keeps them: on the host the memory itself, of a device a copy."""
        if self.device == "cpu":
            kept: Array = self._owner
            first = (self.pointer - kept.ctypes.data) // self.itemsize
            return kept.reshape(-1)[first : first + self.size].reshape(self.shape)
        return self._owner.to_host(self.pointer, self.nbytes).view(storage(self.dtype)).reshape(self.shape)

    def numpy(self) -> Array:
        """Return its numbers as numpy can compute with them; of bfloat16 in float32."""
        return widened(self.bits(), self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False and (self.device != "cpu" or self.dtype == BFLOAT16):
            raise ValueError(f"A {self.dtype} tensor on {self.device} cannot be seen by numpy without a copy.")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return where it is, in DLPack's numbers."""
        kind, _, index = self.device.partition(":")
        return (dlpack.CPU, 0) if kind == "cpu" else (dlpack.CUDA, int(index))

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule.

        On a GPU, work that is queued on `stream` from here on comes after what writes the tensor; None is the legacy
        default stream, -1 asks for no order. What was queued on that stream comes before the next call that reads the
        tensor, or writes its memory again; the stream has to live until then.

        Raises:
            BufferError: it should be copied, or be on another device, or the stream is that of each thread.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(f"This tensor is handed over where it is, on {self.device}, and not as a copy.")
        if self.device != "cpu" and stream == dlpack.PER_THREAD_STREAM:
            raise BufferError("The per-thread default stream is another one in every thread; name a stream, or 1.")
        if self.device != "cpu" and stream != -1:
            self._owner.ready_for(dlpack.LEGACY_STREAM if stream is None else stream)
        return dlpack.export_capsule(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self._owner)

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype}, {self.device})"


TensorValue: TypeAlias = Array | Tensor
"""What a graph takes and gives: numpy's where numpy can show it."""


def feed_of(array: Array, dtype: str) -> TensorValue:
    """Return numbers as an input of a dtype, rounded to it where they are not yet."""
    return Tensor.of(array, dtype) if dtype == BFLOAT16 else array.astype(dtype, copy=False)


def as_given(x: Any, on_device: Callable[[Any], Tensor] | None = None) -> TensorValue:
    """Return what a caller gave, without a copy: as a numpy array if numpy can show it, else as a `Tensor`.

    Args:
        x: an array of any library.
        on_device: makes a tensor of what lives on a GPU; None where there is none.

    Raises:
        InputError: it lives on a GPU that is not used here, or its numbers do not lie one after the other, or numpy
            and DLPack refuse it.
    """
    if isinstance(x, np.ndarray) or (isinstance(x, Tensor) and x.device == "cpu"):
        return x
    if hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        if on_device is None:
            raise InputError(
                f"The {type(x).__name__} is on cuda:{x.__dlpack_device__()[1]}, this session on the CPU. Pass x.cpu(), "
                'or open the artifact with device="cuda".'
            )
        return on_device(x)
    try:
        return np.asarray(x)
    except (TypeError, RuntimeError):  # numpy has no such dtype, or the array's library refuses
        if not hasattr(x, "__dlpack__"):
            raise
        return _from_host(x)


def _from_host(x: Any) -> Tensor:
    try:
        taken = dlpack.import_capsule(x)
    except BufferError as error:
        raise InputError(f"The {type(x).__name__} cannot be read: {error}") from error
    check_contiguous(taken, x)
    return Tensor(taken.pointer, taken.shape, taken.dtype, "cpu", np.asarray(taken))


def check_contiguous(taken: dlpack.ImportedTensor, x: Any) -> None:
    """Refuse memory whose numbers do not lie one after the other.

    Raises:
        InputError: they do not.
    """
    if not taken.contiguous:
        raise InputError(
            f"A {type(x).__name__} of shape {taken.shape} was given whose numbers do not lie one after the other. "
            "Pass x.contiguous()."
        )

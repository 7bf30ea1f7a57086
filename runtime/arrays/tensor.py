"""`Tensor`, an array on a GPU that other libraries read through DLPack, and the arrays that a caller passes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import dlpack
from .dtypes import DTYPES

Array: TypeAlias = npt.NDArray[Any]


class Memory(Protocol):
    """The memory of a tensor, and the streams that use it; see `runtime.devices.cuda.memory`."""

    def ready_for(self, stream: int) -> None:
        """Make a stream wait until the work queued so far has written the memory."""

    def settle(self, stream: int) -> None:
        """Make a stream wait for every stream that may have written the memory."""

    def to_host(self, pointer: int, nbytes: int) -> Array:
        """Return a uint8 copy of part of the memory."""


class Tensor:
    """A contiguous array on a GPU, with a shape, a dtype and a device, that supports DLPack.

    `torch.from_dlpack(tensor)`, and the same functions of CuPy and JAX, read it without a copy. `numpy()` copies it to
    the host.

    Attributes:
        shape: Size of each dimension.
        dtype: Name of the dtype: "float32", "float16", "bfloat16" or "int64".
        device: Name of the GPU, "cuda:N".
        pointer: Address of the first element.
        size: Number of elements.
        itemsize: Size of one element in bytes.
        nbytes: Size of all elements in bytes.
        owner: Object that holds the memory, which other tensors may share.
    """

    __slots__ = ("__weakref__", "device", "dtype", "itemsize", "nbytes", "owner", "pointer", "shape", "size")

    def __init__(self, pointer: int, shape: Sequence[int], dtype: str, device: str, owner: Memory | None) -> None:
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.size = math.prod(self.shape)
        self.itemsize = DTYPES[dtype].numpy.itemsize
        self.nbytes = self.size * self.itemsize
        self.owner: Any = owner

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def reshape(self, *shape: Any) -> "Tensor":
        """Return the same memory in another shape, given as integers or as one tuple; one of them may be -1.

        Raises:
            InputError: The shape has another number of elements, or is not made of whole numbers; it is a ValueError.
        """
        wanted = shape[0] if len(shape) == 1 else shape
        if type(wanted) is tuple and all(type(n) is int and n >= 0 for n in wanted) and math.prod(wanted) == self.size:
            return self if wanted == self.shape else Tensor(self.pointer, wanted, self.dtype, self.device, self.owner)
        # numpy knows the other rules; one element, broadcast to the whole shape, takes no memory.
        one = np.broadcast_to(np.empty((), np.int8), self.shape) if self.size else np.empty(self.shape, np.int8)
        try:
            new = one.reshape(wanted).shape
        except (TypeError, ValueError) as error:
            raise InputError(f"A {self!r} does not take the shape {wanted!r}: {error}.") from None
        return Tensor(self.pointer, new, self.dtype, self.device, self.owner)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "Tensor":
        """Return consecutive rows, without a copy.

        Raises:
            TypeError: The index is not a slice of rows with step 1.
        """
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(
                f"tensor[{rows!r}] is not supported; a Tensor takes one slice of rows, tensor[start:stop]. For other "
                "indices use torch.from_dlpack(tensor)."
            )
        start, stop, _ = rows.indices(len(self))
        if (start, stop) == (0, len(self)):
            return self
        row = math.prod(self.shape[1:]) * self.itemsize
        shape = (max(0, stop - start), *self.shape[1:])
        return Tensor(self.pointer + start * row, shape, self.dtype, self.device, self.owner)

    def settle(self, stream: int) -> None:
        """Make a stream wait for every stream that may have written the tensor."""
        self.owner.settle(stream)

    def numpy(self) -> Array:
        """Return a copy on the host."""
        copied: Array = self.owner.to_host(self.pointer, self.nbytes)
        return copied.view(DTYPES[self.dtype].numpy).reshape(self.shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(f"A tensor on {self.device} cannot become a numpy array without a copy.")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device as DLPack's pair of `DLDeviceType` and index."""
        return dlpack.CUDA, int(self.device.partition(":")[2])

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule.

        Work queued on `stream` after this call runs after the work that writes the tensor; None is the legacy default
        stream, and -1 asks for no order. Work queued on that stream runs before the next call that reads the tensor, or
        writes its memory again; the stream has to live until then.

        Raises:
            BufferError: A copy or another device is asked for, or `stream` is the per-thread default stream.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(
                f"This tensor can be exported only as it is, on {self.device} and without a copy; dl_device is "
                f"{dl_device} and copy is {copy}."
            )
        if stream == dlpack.PER_THREAD_STREAM:
            raise BufferError("stream is 2, the per-thread default stream, which differs from thread to thread. Pass "
                              "the address of a stream, or 1 for the legacy default stream.")  # fmt: skip
        if stream != -1:
            self.owner.ready_for(dlpack.LEGACY_STREAM if stream is None else stream)
        return dlpack.export_capsule(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self.owner)

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype}, {self.device})"


TensorValue: TypeAlias = Array | Tensor
"""An input or output of a graph: a numpy array on the host, or a `Tensor` on a GPU."""


def feed_of(array: Array, dtype: str) -> Array:
    """Return an array in the dtype of a graph's input, rounded if necessary; it is not copied if it has that dtype."""
    return array.astype(DTYPES[dtype].numpy, copy=False)


_UNREADABLE = (TypeError, ValueError, RuntimeError, BufferError, OverflowError)
"""What numpy and the libraries of arrays raise for an array that they cannot convert."""

_LAZY_SIGNS = {"is_neg": "resolve_neg", "is_conj": "resolve_conj"}
"""Methods of a torch tensor that tell that its memory holds other values than the tensor, and those that compute them.
DLPack has no word for either, and would hand over the memory."""


def as_given(x: Any, on_device: Callable[[Any, int], Tensor] | None = None) -> TensorValue:
    """Return the array that a caller passed, without a copy: as a numpy array, or as a `Tensor` if it is on a GPU.

    Args:
        x: An array of any library.
        on_device: Function that makes a `Tensor` of an array on a GPU, of which it gets the index; None if this session
            runs on the CPU.

    Raises:
        InputError: `x` is on a GPU that this session does not use, or is not contiguous, or neither numpy nor DLPack
            can read it, or its memory does not hold its values: a masked array, or a tensor of torch that is the
            negative or the conjugate of another.
    """
    if type(x) is np.ndarray:
        return x
    check_holds_its_values(x)
    try:
        if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
            return np.asarray(x)
        kind, index = x.__dlpack_device__()
    except _UNREADABLE as error:
        raise _unreadable(x, error) from error
    if kind in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        if on_device is None:
            raise InputError(
                f"The {type(x).__name__} is on cuda:{index}, this session on the CPU. Pass x.cpu(), "
                'or open the artifact with device="cuda".'
            )
        return on_device(x, index)
    try:
        return np.asarray(x)
    except _UNREADABLE:  # numpy does not know the dtype, as torch's bfloat16, or the library refuses
        return _from_host(x)


def check_holds_its_values(x: Any) -> None:
    """Refuse arrays whose memory holds other values than the array does.

    Raises:
        InputError: `x` is a masked array, or a list of them, or a tensor of torch whose negative bit or conjugate bit
            is set.
    """
    rows = x if isinstance(x, (list, tuple)) else ()
    if isinstance(x, np.ma.MaskedArray) or any(isinstance(row, np.ma.MaskedArray) for row in rows):
        raise InputError("A masked array was given, and its mask would be ignored. Pass x.filled(value).")
    for bit, resolve in _LAZY_SIGNS.items():
        is_set = getattr(x, bit, None)
        if callable(is_set) and is_set() is True:
            raise InputError(
                f"The {type(x).__name__} has the bit of {bit}(): its memory holds other values. Pass x.{resolve}()."
            )


def _from_host(x: Any) -> Array:
    try:
        imported = dlpack.import_capsule(x)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(x, error) from error
    check_contiguous(imported, x)
    return imported.numpy()


def _unreadable(x: Any, error: Exception) -> InputError:
    return InputError(f"The {type(x).__name__} cannot be read: {error}")


def check_contiguous(imported: dlpack.ImportedTensor, x: Any) -> None:
    """Refuse memory that is not contiguous.

    Raises:
        InputError: It is not.
    """
    if not imported.contiguous:
        raise InputError(f"The {type(x).__name__} of shape {imported.shape} is not contiguous. Pass x.contiguous().")

"""DLPack: arrays handed over between libraries without a copy, in ctypes, so that none of them has to be imported.

Source: https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html, the structs of version 0.x, which every
library gives where no `max_version` is asked for.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .dtypes import DTYPES

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""`DLDeviceType`; memory of the host that is pinned, or managed, numpy or CUDA can read as their own."""

LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
"""`stream` of `__dlpack__` that means CUDA's legacy default stream, and that of each thread; -1 is no order at all."""

NAME, USED = b"dltensor", b"used_dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_python = ctypes.pythonapi
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C API; by an object of its own, so that nobody else's declaration is changed."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, _python))


_new = _function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_valid = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
# In a destructor the capsule has no reference left; a py_object would revive it.
_is_valid_dying = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer_dying = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


class ImportedTensor:
    """What a capsule handed over. The memory lives as long as this.

    Attributes:
        pointer: the address of the first number.
        shape: in numbers.
        dtype: its name, such as "bfloat16".
        device: `DLDeviceType` and number.
        contiguous: whether the numbers lie one after the other, the last dimension's next to each other.
    """

    def __init__(self, managed: Any) -> None:
        tensor = managed.contents.tensor
        self._managed = managed
        self.pointer: int = (tensor.data or 0) + tensor.byte_offset
        self.shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        self.dtype = _dtype_name(tensor.dtype)
        self.device = (int(tensor.device.type), int(tensor.device.id))
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
        self.contiguous = strides is None or _is_contiguous(self.shape, strides)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The memory as numpy reads it, if it is the host's; of bfloat16 its bits."""
        kind = DTYPES[self.dtype].storage.str
        return {"version": 3, "data": (self.pointer, False), "shape": self.shape, "typestr": kind}

    def __del__(self) -> None:
        if self._managed.contents.deleter:
            self._managed.contents.deleter(self._managed)


def import_capsule(producer: Any, stream: int | None = None) -> ImportedTensor:
    """Return what a DLPack producer holds, its memory and its numbers where they are.

    Args:
        producer: has `__dlpack__`.
        stream: on which the memory will be read; the producer lets it wait for what it has still to write. None for
            memory of the host.

    Raises:
        InputError: it has already been taken from, or is of a dtype that no SAE takes.
        Exception: the producer's own, where it refuses.
    """
    capsule = producer.__dlpack__() if stream is None else producer.__dlpack__(stream=stream)
    if not _is_valid(capsule, NAME):
        raise InputError(
            f"{type(producer).__name__}.__dlpack__ returned {capsule!r}, which is no DLPack capsule that can be taken."
        )
    managed = ctypes.cast(_pointer(capsule, NAME), ctypes.POINTER(_Managed))
    _rename(capsule, USED)
    return ImportedTensor(managed)


@dataclass
class _Exported:
    """What lives until the receiver of a capsule calls its deleter."""

    managed: Any
    arrays: tuple[Any, Any]
    owner: object


_exported: dict[int, _Exported] = {}


def _delete(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


_fetch = ctypes.PYFUNCTYPE(None)(("PyErr_Fetch", _python))
_PENDING = [ctypes.byref(ctypes.c_void_p()) for _ in range(3)]


def _destroy(capsule: int) -> None:
    # First of all, and by nothing that Python itself would check: whoever refuses a capsule drops it with its exception
    # set, and with that no Python code runs. (ctypes has no way to set it again: the caller gets a SystemError.)
    _fetch(*_PENDING)
    if _is_valid_dying(capsule, NAME):  # nobody took it
        address = _pointer_dying(capsule, NAME)
        _exported.pop(address, None)


# They have to live as long as any capsule, which may be as long as the process.
_DELETE, _DESTROY = _Deleter(_delete), _Destructor(_destroy)


def export_capsule(pointer: int, shape: Sequence[int], dtype: str, device: tuple[int, int], owner: object) -> Any:
    """Return a capsule of contiguous memory.

    Args:
        pointer: the address of the first number.
        shape: in numbers.
        dtype: its name.
        device: `DLDeviceType` and number.
        owner: what keeps the memory alive; it is held until the receiver is done.
    """
    known = DTYPES[dtype]
    strides = [1] * len(shape)
    for i in reversed(range(len(shape) - 1)):
        strides[i] = strides[i + 1] * shape[i + 1]
    arrays = tuple((ctypes.c_int64 * max(1, len(shape)))(*values) for values in (shape, strides))
    managed = _Managed()
    managed.tensor.data = pointer
    managed.tensor.device = _Device(*device)
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = _DType(known.dlpack, known.bits, 1)
    managed.tensor.shape, managed.tensor.strides = (ctypes.cast(a, ctypes.POINTER(ctypes.c_int64)) for a in arrays)
    managed.deleter = _DELETE
    address = ctypes.addressof(managed)
    _exported[address] = _Exported(managed, (arrays[0], arrays[1]), owner)
    return _new(address, NAME, _DESTROY)


def _dtype_name(dtype: Any) -> str:
    for name, known in DTYPES.items():
        if (known.dlpack, known.bits, 1) == (dtype.code, dtype.bits, dtype.lanes):
            return name
    raise InputError(
        f"A DLPack tensor of code {dtype.code}, {dtype.bits} bits and {dtype.lanes} lanes was given; an SAE takes "
        f"{', '.join(DTYPES)}."
    )


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected and 0 not in shape:
            return False
        expected *= size
    return True

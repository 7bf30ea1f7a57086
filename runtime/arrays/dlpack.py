"""DLPack: exchange of arrays between libraries without a copy, in ctypes, so that no other library is imported.

numpy's own DLPack reads neither memory of a GPU nor bfloat16.

Source: https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html, the structs of version 0.x, which every
library returns if no `max_version` is asked for.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .dtypes import DTYPES

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""`DLDeviceType`. Pinned memory is host memory; managed memory is read as a GPU's."""

LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
"""Values of `stream` in `__dlpack__`: CUDA's legacy default stream, and the per-thread one. -1 asks for no order."""

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
    """Return a function of Python's C API as a new object, so that declarations in other modules do not change."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, _python))


_new = _function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_valid = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
# In a destructor the capsule has no reference left; a py_object would revive it.
_is_valid_dying = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer_dying = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


class ImportedTensor:
    """A tensor that a DLPack capsule handed over. Its memory lives as long as this object.

    Attributes:
        pointer: Address of the first element.
        shape: Size of each dimension.
        dtype: Name of the dtype, such as "bfloat16".
        device: `DLDeviceType` and the index of the device.
        contiguous: Whether the memory is contiguous, in C order.
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
        """The bits of contiguous host memory as unsigned integers; this protocol has no name for bfloat16."""
        bits = f"<u{DTYPES[self.dtype].bits // 8}"
        return {"version": 3, "data": (self.pointer, False), "shape": self.shape, "typestr": bits}

    def numpy(self) -> npt.NDArray[Any]:
        """Return contiguous host memory as an array, without a copy."""
        return np.asarray(self).view(DTYPES[self.dtype].numpy)

    def __del__(self) -> None:
        if self._managed.contents.deleter:
            self._managed.contents.deleter(self._managed)


def import_capsule(producer: Any, stream: int | None = None) -> ImportedTensor:
    """Return the tensor of a DLPack producer, without a copy.

    Args:
        producer: Object with a `__dlpack__` method.
        stream: CUDA stream on which the memory will be read; the producer makes it wait for its own pending writes.
            None for host memory.

    Raises:
        InputError: The capsule was used before, or the dtype is not in `DTYPES`.
        Exception: The producer's own error, if it refuses.
    """
    capsule = producer.__dlpack__() if stream is None else producer.__dlpack__(stream=stream)
    if not _is_valid(capsule, NAME):
        raise InputError(
            f"{type(producer).__name__}.__dlpack__ returned {capsule!r}; it must be a DLPack capsule that was not used "
            "before."
        )
    managed = ctypes.cast(_pointer(capsule, NAME), ctypes.POINTER(_Managed))
    _rename(capsule, USED)
    return ImportedTensor(managed)


@dataclass
class _Exported:
    """The objects that live until the consumer of a capsule calls its deleter."""

    managed: Any
    arrays: tuple[Any, Any]
    owner: object


_exported: dict[int, _Exported] = {}


_fetch = ctypes.PYFUNCTYPE(None)(("PyErr_Fetch", _python))


def _make_callbacks() -> tuple[Any, Any]:
    """Return the deleter of a tensor, and the destructor of a capsule that no consumer used.

    A tensor of another library may be freed after this module, when the process ends. So both callbacks use only what
    they hold themselves, and are never freed.
    """
    exported, address_of, fetch, is_valid, pointer = (
        _exported, ctypes.addressof, _fetch, _is_valid_dying, _pointer_dying,
    )  # fmt: skip
    pending = [ctypes.byref(ctypes.c_void_p()) for _ in range(3)]
    name = NAME

    def delete(managed: Any) -> None:
        exported.pop(address_of(managed.contents), None)

    def destroy(capsule: int) -> None:
        # A consumer that refuses a capsule drops it while its exception is set, and then no Python code can run. So
        # fetch the exception first. (ctypes cannot set it again: the caller gets a SystemError.)
        fetch(*pending)
        if is_valid(capsule, name):
            exported.pop(pointer(capsule, name), None)

    callbacks = _Deleter(delete), _Destructor(destroy)
    _function("Py_IncRef", None, ctypes.py_object)(callbacks)
    return callbacks


_DELETE, _DESTROY = _make_callbacks()


def export_capsule(pointer: int, shape: Sequence[int], dtype: str, device: tuple[int, int], owner: object) -> Any:
    """Return a capsule of contiguous memory.

    Args:
        pointer: Address of the first element.
        shape: Size of each dimension.
        dtype: Name of the dtype.
        device: `DLDeviceType` and the index of the device.
        owner: Object that keeps the memory alive; it is held until the consumer calls the deleter.
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
        f"The DLPack tensor has the dtype of code {dtype.code}, {dtype.bits} bits and {dtype.lanes} lanes; it must be "
        f"one of {', '.join(DTYPES)}."
    )


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected and 0 not in shape:
            return False
        expected *= size
    return True

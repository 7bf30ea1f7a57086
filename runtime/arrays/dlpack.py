"""DLPack: exchange of arrays between libraries without a copy, in ctypes, so that no other library is imported.

numpy's own DLPack reads neither memory of a GPU nor bfloat16.

Source: https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html. `__dlpack__` returns the structures of
version 0.x if no `max_version` is asked for, and the functions of `exchange.py` those of version 1.
"""

import ctypes
import functools
import struct
from collections.abc import Sequence
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

_TENSOR = "PiiiBBHPPQ"
"""The fields of a `DLTensor`: data, type and id of the device, ndim, code, bits and lanes of the dtype, shape, strides,
byte_offset."""

_MANAGED = struct.Struct(_TENSOR + "PP")
"""The fields of a `DLManagedTensor`: those of its `DLTensor`, manager_ctx, deleter."""

_VERSIONED = struct.Struct("IIPPQ" + _TENSOR)
"""The fields of a `DLManagedTensorVersioned`: major and minor version, manager_ctx, deleter, flags, those of its
`DLTensor`."""

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_function_at = functools.lru_cache(maxsize=16)(_Deleter)  # a library has few deleters

_python = ctypes.pythonapi
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C API as a new object, so that declarations in other modules do not change."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, _python))


_new = _function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)
is_capsule = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
capsule_pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
# In a destructor the capsule has no reference left; a py_object would revive it.
_is_valid_dying = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer_dying = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


class ImportedTensor:
    """A tensor that another library handed over. Its memory lives as long as this object.

    Attributes:
        pointer: Address of the first element.
        shape: Size of each dimension.
        dtype: Name of the dtype, such as "bfloat16".
        device: `DLDeviceType` and the index of the device.
        contiguous: Whether the memory is contiguous, in C order.
    """

    def __init__(self, managed: int, deleter: int, fields: Sequence[int]) -> None:
        data, kind, index, ndim, code, bits, lanes, shape, strides, offset = fields
        self._managed = managed
        self._delete = _function_at(deleter) if deleter else None
        self.pointer: int = data + offset
        self.shape = _integers(shape, ndim)
        self.dtype = _dtype_name(code, bits, lanes)
        self.device: tuple[int, int] = (kind, index)
        self.contiguous = not strides or _is_contiguous(self.shape, _integers(strides, ndim))

    @classmethod
    def unversioned(cls, managed: int) -> "ImportedTensor":
        """Return the tensor of a `DLManagedTensor`, given its address."""
        *fields, _, deleter = _MANAGED.unpack(ctypes.string_at(managed, _MANAGED.size))
        return cls(managed, deleter, fields)

    @classmethod
    def versioned(cls, managed: int) -> "ImportedTensor":
        """Return the tensor of a `DLManagedTensorVersioned`, given its address."""
        _, _, _, deleter, _, *fields = _VERSIONED.unpack(ctypes.string_at(managed, _VERSIONED.size))
        return cls(managed, deleter, fields)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The bits of contiguous host memory as unsigned integers; this protocol has no name for bfloat16."""
        bits = f"<u{DTYPES[self.dtype].bits // 8}"
        return {"version": 3, "data": (self.pointer, False), "shape": self.shape, "typestr": bits}

    def numpy(self) -> npt.NDArray[Any]:
        """Return contiguous host memory as an array, without a copy."""
        return np.asarray(self).view(DTYPES[self.dtype].numpy)

    def __del__(self) -> None:
        if self._delete is not None:
            self._delete(self._managed)


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
    if not is_capsule(capsule, NAME):
        raise InputError(
            f"{type(producer).__name__}.__dlpack__ returned {capsule!r}; it must be a DLPack capsule that was not used "
            "before."
        )
    managed = capsule_pointer(capsule, NAME)
    _rename(capsule, USED)
    return ImportedTensor.unversioned(managed)


_exported: dict[int, tuple[object, object]] = {}
"""The structure of each tensor that a consumer has, and the owner of its memory, by the structure's address."""

_fetch = ctypes.PYFUNCTYPE(None)(("PyErr_Fetch", _python))


def _make_callbacks() -> tuple[Any, Any]:
    """Return the deleter of a tensor, and the destructor of a capsule that no consumer used.

    A tensor of another library may be freed after this module, when the process ends. So both callbacks use only what
    they hold themselves, and are never freed.
    """
    exported, fetch, is_valid, pointer = _exported, _fetch, _is_valid_dying, _pointer_dying
    pending = [ctypes.byref(ctypes.c_void_p()) for _ in range(3)]
    name = NAME

    def delete(managed: int) -> None:
        exported.pop(managed, None)

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
_DELETE_ADDRESS = ctypes.cast(_DELETE, ctypes.c_void_p).value


def export_capsule(pointer: int, shape: Sequence[int], dtype: str, device: tuple[int, int], owner: object) -> Any:
    """Return a capsule of contiguous memory.

    Args:
        pointer: Address of the first element.
        shape: Size of each dimension.
        dtype: Name of the dtype.
        device: `DLDeviceType` and the index of the device.
        owner: Object that keeps the memory alive; it is held until the consumer calls the deleter.
    """
    known, ndim = DTYPES[dtype], len(shape)
    structure = (ctypes.c_char * (_MANAGED.size + 16 * ndim))()  # and behind it, the shape and the strides
    address = ctypes.addressof(structure)
    sizes = address + _MANAGED.size
    struct.pack_into(
        f"{_MANAGED.format}{2 * ndim}q", structure, 0, pointer, *device, ndim, known.dlpack, known.bits, 1,
        sizes, sizes + 8 * ndim, 0, 0, _DELETE_ADDRESS, *shape, *_contiguous_strides(shape),
    )  # fmt: skip
    _exported[address] = structure, owner
    return _new(address, NAME, _DESTROY)


def _integers(address: int, count: int) -> tuple[int, ...]:
    return tuple((ctypes.c_int64 * count).from_address(address)) if count else ()


_NAMES = {(known.dlpack, known.bits): name for name, known in DTYPES.items()}


def _dtype_name(code: int, bits: int, lanes: int) -> str:
    name = _NAMES.get((code, bits))
    if name is None or lanes != 1:
        raise InputError(
            f"The DLPack tensor has the dtype of code {code}, {bits} bits and {lanes} lanes; it must be one of "
            f"{', '.join(DTYPES)}."
        )
    return name


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for size in shape[:0:-1]:
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = _contiguous_strides(shape)
    if strides == expected or 0 in shape:
        return True
    return all(size == 1 or a == b for size, a, b in zip(shape, strides, expected, strict=True))

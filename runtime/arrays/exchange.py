"""DLPack's C functions, by which a library hands over an array on a GPU without running its Python code.

PyTorch's `__dlpack__` makes objects for the stream and for an event at each call, which takes as long as starting a
small graph.

Source: `DLPackExchangeAPI` in https://dmlc.github.io/dlpack/latest/c_api.html, DLPack 1.3; PyTorch has it from 2.10 on.
"""

import ctypes
import functools
import struct
from typing import Any

from . import dlpack

ATTRIBUTE, NAME = "__dlpack_c_exchange_api__", b"dlpack_exchange_api"

_API = struct.Struct("IIPPPPPP")
"""The fields of a `DLPackExchangeAPI`: major and minor version, prev_api, managed_tensor_allocator, and the functions
managed_tensor_from_py_object_no_sync, managed_tensor_to_py_object_no_sync, dltensor_from_py_object_no_sync and
current_work_stream."""

MAJOR_VERSION = 1  # a later one may have other fields


class Exchange:
    """The functions of one library.

    Args:
        export: Address of `managed_tensor_from_py_object_no_sync`.
        current_stream: Address of `current_work_stream`.
    """

    def __init__(self, export: int, current_stream: int) -> None:
        self._export = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(export)
        self._current_stream = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p)(
            current_stream
        )

    def import_array(self, x: Any, index: int) -> tuple[dlpack.ImportedTensor, int] | None:
        """Return an array of the library as a tensor, without a copy, and the stream that has to be waited for.

        The library has queued its work on that stream. No stream waits for it yet. The result is None if the library
        refuses, and then its `__dlpack__` says why.

        Args:
            x: The array.
            index: Index of the GPU that it is on.

        Raises:
            InputError: The dtype is not in `DTYPES`.
        """
        stream, managed = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            if not self._current_stream(dlpack.CUDA, index, ctypes.byref(stream)):
                self._export(x, ctypes.byref(managed))
        except Exception:  # of any kind: the library's
            return None
        if managed.value is None:
            return None
        return dlpack.ImportedTensor.versioned(managed.value), stream.value or dlpack.LEGACY_STREAM


def exchange_of(x: Any) -> Exchange | None:
    """Return the functions of the library of an array; None if the array is to be imported by `__dlpack__`.

    That is the case for libraries without the functions, for subclasses, which may compute their values, and for
    tensors of PyTorch that require a gradient, which only `__dlpack__` refuses.
    """
    api = vars(type(x)).get(ATTRIBUTE)
    return None if api is None or getattr(x, "requires_grad", False) else _exchange(api)


@functools.cache
def _exchange(api: Any) -> Exchange | None:
    if not dlpack.is_capsule(api, NAME):
        return None
    fields = _API.unpack(ctypes.string_at(dlpack.capsule_pointer(api, NAME), _API.size))
    major, export, current_stream = fields[0], fields[4], fields[7]
    return Exchange(export, current_stream) if major == MAJOR_VERSION and export and current_stream else None

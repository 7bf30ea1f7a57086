"""Arrays of a library with DLPack's C functions, which do not make a stream wait."""

import ctypes

import numpy as np
import pytest

from runtime import InputError, SAEError, SAESession
from runtime.arrays import dlpack, exchange
from tests.support.samples import TINY, normal
from tests.support.simulated_cuda import LEGACY, DeviceArray

_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
Export = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
CurrentStream = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


def library_with_functions(stream, major=1, refuses=False, has_functions=True):
    """Return a class of arrays, whose library works on one stream, and the calls of its functions.

    A library without a current stream refuses to tell one.
    """
    calls, structures = [], {}

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def delete(address):
        calls.append("delete")

    @Export
    def export(x, out):
        if refuses:
            return -1
        calls.append("export")
        sizes = (ctypes.c_int64 * len(x.shape))(*x.shape)
        structure = ctypes.create_string_buffer(dlpack._VERSIONED.size)
        address = ctypes.cast(delete, ctypes.c_void_p).value
        dlpack._VERSIONED.pack_into(
            structure, 0, 1, 3, 0, address, 0, x.pointer, dlpack.CUDA, 0, len(x.shape), 2, 32, 1,
            ctypes.addressof(sizes), 0, 0,
        )  # fmt: skip
        structures[len(structures)] = structure, sizes
        out[0] = ctypes.addressof(structure)
        return 0

    @CurrentStream
    def current_stream(kind, index, out):
        assert (kind, index) == (dlpack.CUDA, 0)
        if stream is None:
            return -1
        calls.append("stream")
        out[0] = stream
        return 0

    functions = [ctypes.cast(f, ctypes.c_void_p).value if has_functions else 0 for f in (export, current_stream)]
    api = exchange._API.pack(major, 3, 0, 0, functions[0], 0, 0, functions[1])
    kept = ctypes.create_string_buffer(api)
    capsule = _new_capsule(ctypes.addressof(kept), exchange.NAME, None)
    members = {exchange.ATTRIBUTE: capsule, "kept": (kept, export, current_stream, delete)}
    return type("Array", (DeviceArray,), members), calls


def test_the_stream_waits_for_the_current_stream_of_the_library(machine, expected):
    theirs = machine.card(0).stream()
    Array, calls = library_with_functions(theirs)
    with SAESession(TINY, "cuda") as sae:
        for seed in range(2):
            x = normal(3, 6, seed=seed)
            array = Array(machine, np.zeros_like(x), theirs)
            array.write(x)  # queued, and not yet written
            assert np.array_equal(sae(array).numpy(), expected(x))
    assert calls == 2 * ["stream", "export", "delete"]


def test_the_default_stream_of_the_library_is_waited_for(machine, expected):
    Array, _ = library_with_functions(0)
    with SAESession(TINY, "cuda") as sae:
        array = Array(machine, np.zeros((3, 6), np.float32), LEGACY)
        array.write(normal(3, 6))
        assert np.array_equal(sae(array).numpy(), expected(normal(3, 6)))


@pytest.mark.parametrize(
    ("how", "called"),
    [({"major": 2}, []), ({"has_functions": False}, []), ({"refuses": True}, ["stream"]), ({"stream": None}, [])],
    ids=["a later version", "not implemented", "refused", "no current stream"],
)
def test_what_the_functions_do_not_give_is_imported_by_dlpack(machine, expected, how, called):
    Array, calls = library_with_functions(**{"stream": LEGACY, **how})
    with SAESession(TINY, "cuda") as sae:
        assert np.array_equal(sae(Array(machine, normal(3, 6))).numpy(), expected(normal(3, 6)))
    assert calls == called


def test_an_error_is_that_of_dlpack(machine):
    Array, _ = library_with_functions(LEGACY, refuses=True)

    def refuse(self, *, stream=None):
        raise BufferError("the layout is sparse")

    Array.__dlpack__ = refuse
    with SAESession(TINY, "cuda") as sae, pytest.raises(InputError, match="The Array cannot be read: the layout is"):
        sae(Array(machine, normal(3, 6)))


@pytest.mark.parametrize("api", [8, _new_capsule(8, b"other", None)], ids=["an address", "another capsule"])
def test_an_attribute_that_is_not_their_capsule_is_ignored(machine, expected, api):
    Array = type("Array", (DeviceArray,), {exchange.ATTRIBUTE: api})
    with SAESession(TINY, "cuda") as sae:
        assert np.array_equal(sae(Array(machine, normal(3, 6))).numpy(), expected(normal(3, 6)))


def test_a_closed_session_refuses_them(machine):
    Array, calls = library_with_functions(LEGACY)
    sae = SAESession(TINY, "cuda")
    sae.close()
    with pytest.raises(SAEError, match="closed"):
        sae.compute(Array(machine, normal(3, 6)), ["hook_sae_input"])  # which runs nothing
    assert calls == ["stream", "export", "delete"]

"""Tensors of a GPU, the arrays that a caller passes, and DLPack, through which libraries exchange them."""

import gc
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from runtime import InputError, Tensor
from runtime.arrays import dlpack
from runtime.arrays.dtypes import DTYPES
from runtime.arrays.tensor import as_given
from tests.support.samples import normal

DEVICE = (dlpack.CPU, 0)  # DLPack itself is tested with memory of the host


class Exporter:
    """Produces DLPack capsules of an array on the host."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return DEVICE

    def __dlpack__(self, **_):
        kept = self.array
        return dlpack.export_capsule(kept.ctypes.data, kept.shape, kept.dtype.name, DEVICE, kept)


class OfTheCard:
    """Replaces the memory of a tensor where there is no GPU."""

    def __init__(self, array):
        self.array = array

    def to_host(self, pointer, nbytes):
        first = pointer - self.array.ctypes.data
        return self.array.reshape(-1).view(np.uint8)[first : first + nbytes].copy()


def tensor_of(array):
    return Tensor(array.ctypes.data, array.shape, array.dtype.name, "cuda:0", OfTheCard(array))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_gives_and_takes_every_dtype_without_a_copy(dtype):
    original = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    taken = dlpack.import_capsule(original)
    assert (taken.pointer, taken.shape, taken.dtype, taken.contiguous) == (original.data_ptr(), (2, 3, 4), dtype, True)
    array = taken.numpy()
    back = torch.from_dlpack(Exporter(array))
    assert (back.data_ptr(), back.dtype) == (original.data_ptr(), original.dtype)
    assert torch.equal(back, original)
    assert array.dtype == dtype
    assert np.array_equal(array.astype(np.float64), original.double().numpy())


def test_memory_lives_as_long_as_somebody_holds_it():
    held = len(dlpack._exported)
    array = normal(3, 4).astype(ml_dtypes.bfloat16)
    expected = array.astype(np.float32)
    other = torch.from_dlpack(Exporter(array))[1:]
    del array
    gc.collect()
    assert len(dlpack._exported) == held + 1
    assert np.array_equal(other.float().numpy(), expected[1:])
    del other
    gc.collect()
    assert len(dlpack._exported) == held
    capsule = Exporter(normal(3)).__dlpack__()  # no consumer takes it
    assert len(dlpack._exported) == held + 1
    del capsule
    gc.collect()
    assert len(dlpack._exported) == held


def test_an_imported_array_keeps_the_memory_of_its_library():
    original = torch.ones(1000).bfloat16()
    array = as_given(original)
    del original
    gc.collect()
    _ = [torch.zeros(1000).bfloat16() for _ in range(20)]
    assert (array == 1).all()


def test_a_capsule_is_taken_once():
    class Once:
        capsule = Exporter(normal(3)).__dlpack__()

        def __dlpack__(self):
            return self.capsule

    producer = Once()
    dlpack.import_capsule(producer)
    with pytest.raises(InputError, match="Once.__dlpack__ returned .*; it must be a DLPack capsule that was not used"):
        dlpack.import_capsule(producer)


def test_other_dtypes_are_refused():
    with pytest.raises(InputError, match="code 5, 64 bits and 1 lanes; it must be one of float32"):
        dlpack.import_capsule(torch.zeros(2, dtype=torch.complex64))


def test_strides_decide_whether_it_is_contiguous():
    x = torch.zeros(4, 6)
    assert dlpack.import_capsule(x[1:3]).contiguous
    assert dlpack.import_capsule(x[:, :1][:1]).contiguous  # one element
    assert dlpack.import_capsule(torch.zeros(0, 6).T).contiguous  # none
    assert not dlpack.import_capsule(x.T).contiguous
    assert not dlpack.import_capsule(x[:, 1:]).contiguous


def test_rows_and_shapes():
    array = normal(5, 4).astype(ml_dtypes.bfloat16)
    tensor = tensor_of(array)
    assert (len(tensor), tensor.ndim, tensor.size, tensor.itemsize, tensor.nbytes) == (5, 2, 20, 2, 40)
    assert np.array_equal(tensor[1:3].numpy(), array[1:3])
    assert np.array_equal(tensor[2:].reshape(2, 6).numpy(), array[2:].reshape(2, 6))
    assert tensor.reshape((-1, 2)).shape == (10, 2)
    assert tensor[5:].shape == (0, 4)
    assert tensor_of(np.zeros((0, 4), np.float16)).reshape(0, 2, 2).shape == (0, 2, 2)
    assert repr(tensor) == "Tensor([5, 4], bfloat16, cuda:0)"
    with pytest.raises(ValueError, match="cannot reshape"):
        tensor.reshape(3, 7)
    with pytest.raises(ValueError, match="does not take the shape"):
        tensor.reshape(5.0, 4.0)
    for index in (1, slice(0, 4, 2), (slice(0, 1), 0)):
        with pytest.raises(TypeError, match="a Tensor takes one slice of rows"):
            tensor[index]


def test_numpy_reads_a_copy():
    tensor = tensor_of(np.array([1.5, -2.25], ml_dtypes.bfloat16))
    assert np.asarray(tensor).dtype == ml_dtypes.bfloat16
    assert np.asarray(tensor, np.float64).tolist() == [1.5, -2.25]
    assert np.asarray(tensor).view(np.uint16).tolist() == [0x3FC0, 0xC010]
    with pytest.raises(ValueError, match="on cuda:0 cannot become a numpy array without a copy"):
        np.array(tensor, copy=False)


@pytest.mark.parametrize("more", [{"copy": True}, {"dl_device": (1, 0)}])
def test_it_is_exported_as_it_is(more):
    with pytest.raises(BufferError, match="can be exported only as it is, on cuda:0 and without a copy"):
        tensor_of(normal(3)).__dlpack__(**more)


def test_what_a_caller_gives():
    x = normal(3, 4)
    assert as_given(x) is x
    assert np.shares_memory(as_given(torch.from_numpy(x)), x)
    half = torch.from_numpy(x).bfloat16()
    array = as_given(half)
    assert (type(array), array.dtype, array.ctypes.data) == (np.ndarray, ml_dtypes.bfloat16, half.data_ptr())
    assert np.array_equal(array, x.astype(ml_dtypes.bfloat16))
    assert as_given(array) is array
    assert as_given([1.0, 2.0]).tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match=r"The Tensor of shape \(4, 3\) is not contiguous. Pass x.contiguous\(\)"):
        as_given(half.T)
    with pytest.raises(InputError, match=r"cannot be read: .*gradient"):
        as_given(torch.zeros(2, requires_grad=True))
    with pytest.raises(InputError, match="The Tensor is on cuda:0, this session on the CPU"):
        as_given(tensor_of(x))


AT_THE_END = """
import builtins, numpy, torch
from runtime.arrays import dlpack

class Exporter:
    array = numpy.ones(6, numpy.float32)

    def __dlpack_device__(self):
        return dlpack.CPU, 0

    def __dlpack__(self, **_):
        return dlpack.export_capsule(self.array.ctypes.data, (6,), "float32", (dlpack.CPU, 0), self)

tensor, many = torch.from_dlpack(Exporter()), [torch.from_dlpack(Exporter()) for _ in range(3)]
capsule = Exporter().__dlpack__()
builtins.freed_after_every_module = torch.from_dlpack(Exporter()), Exporter().__dlpack__()
"""


def test_a_process_may_end_while_other_libraries_hold_tensors():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

"""Tensors that numpy cannot show, and DLPack, by which other libraries take and give them."""

import gc

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime import InputError, Tensor
from runtime.arrays import dlpack
from runtime.arrays.dtypes import BFLOAT16, DTYPES, narrowed, rounded, storage, widened
from runtime.arrays.tensor import as_given
from tests.support.samples import normal


@given(st.integers(0, 2**32 - 1))
def test_rounding_to_bfloat16_is_that_of_ml_dtypes(bits):
    value = np.array([bits], np.uint32).view(np.float32)
    expected = value.astype(ml_dtypes.bfloat16)
    assert np.array_equal(rounded(value, BFLOAT16), expected.astype(np.float32), equal_nan=True)
    if not np.isnan(value):
        assert narrowed(value, BFLOAT16) == expected.view(np.uint16)


def test_every_bfloat16_comes_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = widened(bits, BFLOAT16)
    same = narrowed(numbers, BFLOAT16) == bits
    assert same[~np.isnan(numbers)].all()
    assert np.isnan(widened(narrowed(numbers, BFLOAT16), BFLOAT16)[np.isnan(numbers)]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int32"])
def test_torch_gives_and_takes_every_dtype_without_a_copy(dtype):
    original = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    taken = dlpack.import_capsule(original)
    assert (taken.pointer, taken.shape, taken.dtype, taken.contiguous) == (original.data_ptr(), (2, 3, 4), dtype, True)
    tensor = Tensor(taken.pointer, taken.shape, taken.dtype, "cpu", np.asarray(taken))
    back = torch.from_dlpack(tensor)
    assert (back.data_ptr(), back.dtype) == (original.data_ptr(), original.dtype)
    assert torch.equal(back, original)
    assert np.array_equal(tensor.numpy(), original.float().numpy() if dtype == "bfloat16" else original.numpy())


def test_memory_lives_as_long_as_somebody_holds_it():
    held = len(dlpack._exported)
    tensor = Tensor.of(normal(3, 4), "bfloat16")
    expected = tensor.numpy()
    other = torch.from_dlpack(tensor)[1:]
    del tensor
    gc.collect()
    assert len(dlpack._exported) == held + 1
    assert np.array_equal(other.float().numpy(), expected[1:])
    del other
    gc.collect()
    assert len(dlpack._exported) == held
    capsule = Tensor.of(normal(3), "float32").__dlpack__()  # that nobody takes
    assert len(dlpack._exported) == held + 1
    del capsule
    gc.collect()
    assert len(dlpack._exported) == held


def test_a_capsule_is_taken_once():
    class Once:
        capsule = Tensor.of(normal(3), "float32").__dlpack__()

        def __dlpack__(self):
            return self.capsule

    producer = Once()
    dlpack.import_capsule(producer)
    with pytest.raises(InputError, match="Once.__dlpack__ returned .*, which is no DLPack capsule that can be taken"):
        dlpack.import_capsule(producer)


def test_other_dtypes_are_refused():
    with pytest.raises(InputError, match="code 5, 64 bits and 1 lanes was given; an SAE takes float32"):
        dlpack.import_capsule(torch.zeros(2, dtype=torch.complex64))


def test_strides_decide_whether_it_is_contiguous():
    x = torch.zeros(4, 6)
    assert dlpack.import_capsule(x[1:3]).contiguous
    assert dlpack.import_capsule(x[:, :1][:1]).contiguous  # one number
    assert dlpack.import_capsule(torch.zeros(0, 6).T).contiguous  # none
    assert not dlpack.import_capsule(x.T).contiguous
    assert not dlpack.import_capsule(x[:, 1:]).contiguous


def test_rows_and_shapes():
    tensor = Tensor.of(normal(5, 4), "bfloat16")
    assert (len(tensor), tensor.ndim, tensor.size, tensor.itemsize, tensor.nbytes) == (5, 2, 20, 2, 40)
    assert np.array_equal(tensor[1:3].numpy(), tensor.numpy()[1:3])
    assert np.array_equal(tensor[2:].reshape(2, 6).numpy(), tensor.numpy()[2:].reshape(2, 6))
    assert tensor.reshape((-1, 2)).shape == (10, 2)
    assert tensor[5:].shape == (0, 4)
    assert Tensor.of(np.zeros((0, 4)), "float16").reshape(0, 2, 2).shape == (0, 2, 2)
    assert repr(tensor) == "Tensor([5, 4], bfloat16, cpu)"
    with pytest.raises(ValueError, match="cannot reshape"):
        tensor.reshape(3, 7)
    for index in (1, slice(0, 4, 2), (slice(0, 1), 0)):
        with pytest.raises(TypeError, match="cut by a slice of rows"):
            tensor[index]


def test_numpy_reads_it():
    tensor = Tensor.of([1.5, -2.25], "bfloat16")
    assert np.asarray(tensor).dtype == np.float32
    assert np.asarray(tensor, np.float64).tolist() == [1.5, -2.25]
    assert tensor.bits().tolist() == [0x3FC0, 0xC010]
    with pytest.raises(ValueError, match="cannot be seen by numpy without a copy"):
        np.array(tensor, copy=False)


@pytest.mark.parametrize("more", [{"copy": True}, {"dl_device": (2, 0)}])
def test_it_is_handed_over_where_it_is(more):
    with pytest.raises(BufferError, match="on cpu, and not as a copy"):
        Tensor.of([1.0], "float32").__dlpack__(**more)


def test_what_a_caller_gives():
    x = normal(3, 4)
    assert as_given(x) is x
    assert np.shares_memory(as_given(torch.from_numpy(x)), x)
    half = torch.from_numpy(x).bfloat16()
    tensor = as_given(half)
    assert (type(tensor), tensor.pointer) == (Tensor, half.data_ptr())
    assert as_given(tensor) is tensor
    assert as_given([1.0, 2.0]).tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match=r"shape \(4, 3\) was given whose numbers do not lie one after the other"):
        as_given(half.T)
    with pytest.raises(InputError, match=r"cannot be read: .*gradient"):
        as_given(torch.zeros(2, requires_grad=True))


def test_storage_has_the_size_of_the_dtype():
    assert all(storage(name).itemsize * 8 == known.bits for name, known in DTYPES.items())
    assert storage("uint8") == np.uint8

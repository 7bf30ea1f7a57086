"""DLPack's C functions, with those of PyTorch on the CPU."""

import gc

import ml_dtypes
import numpy as np
import pytest
import torch

from runtime import InputError
from runtime.arrays import dlpack
from runtime.arrays.dtypes import DTYPES
from runtime.arrays.exchange import ATTRIBUTE, exchange_of

pytestmark = pytest.mark.skipif(ATTRIBUTE not in vars(torch.Tensor), reason="this PyTorch has no such functions")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_taken_without_a_copy(dtype):
    original = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))[1:]
    taken, _ = exchange_of(original).import_array(original, 0)
    assert (taken.pointer, taken.shape, taken.dtype) == (original.data_ptr(), (1, 3, 4), dtype)
    assert (taken.device, taken.contiguous) == ((dlpack.CPU, 0), True)
    assert np.array_equal(taken.numpy().astype(np.float64), original.double().numpy())


def test_its_memory_lives_as_long_as_the_result():
    original = torch.ones(1000).bfloat16()
    array = exchange_of(original).import_array(original, 0)[0].numpy()
    del original
    gc.collect()
    _ = [torch.zeros(1000).bfloat16() for _ in range(20)]
    assert (array == ml_dtypes.bfloat16(1)).all()


def test_strides_decide_whether_it_is_contiguous():
    x = torch.zeros(4, 6)
    exchange = exchange_of(x)
    assert [exchange.import_array(part, 0)[0].contiguous for part in (x.T, x[1:3])] == [False, True]


def test_other_dtypes_are_refused():
    x = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(InputError, match="code 5, 64 bits and 1 lanes; it must be one of float32"):
        exchange_of(x).import_array(x, 0)


def test_an_array_that_the_library_refuses_is_none():
    x = torch.ones(3, 3).to_sparse()
    assert exchange_of(x).import_array(x, 0) is None


def test_the_default_stream_is_the_legacy_one():
    x = torch.zeros(2)
    assert exchange_of(x).import_array(x, 0)[1] == dlpack.LEGACY_STREAM


class Subclass(torch.Tensor):
    """A tensor that may hold its values elsewhere."""


@pytest.mark.parametrize(
    "x",
    [np.zeros(2), torch.zeros(2, requires_grad=True), torch.zeros(2).as_subclass(Subclass)],
    ids=["no functions", "gradient", "subclass"],
)
def test_other_arrays_are_imported_by_their_method(x):
    assert exchange_of(x) is None

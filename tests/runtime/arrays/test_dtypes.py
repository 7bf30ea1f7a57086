"""One table of dtypes, and one function that reads every spelling of them."""

import ml_dtypes
import numpy as np
import pytest
import torch

from runtime import InputError
from runtime.arrays.dtypes import DTYPES, dtype_name


@pytest.mark.parametrize("name", DTYPES)
def test_every_spelling_of_a_dtype_has_one_name(name):
    of_numpy = getattr(ml_dtypes if name == "bfloat16" else np, name)
    for dtype in (name, f"torch.{name}", getattr(torch, name), of_numpy, np.dtype(of_numpy)):
        assert dtype_name(dtype) == name


@pytest.mark.parametrize("dtype", ["int4", "torch.half", "f4", "", None, 16, np.complex64, torch.complex64, dict, list])
def test_anything_else_is_refused(dtype):
    with pytest.raises(InputError, match=r"dtype is .*; it must be one of float32, float16, bfloat16.*torch.dtype"):
        dtype_name(dtype)

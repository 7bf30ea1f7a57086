"""Every `dtype` argument takes a name, a torch.dtype or a numpy dtype."""

import numpy as np
import pytest
import torch

from runtime import InputError
from saeexport import HookedSAE, HookedSAEConfig, load
from saeexport.original.dtypes import torch_dtype
from saeexport.original.exportable import in_dtype
from tests.support.samples import TINY, make_sae

SPELLINGS = ["float16", "torch.float16", torch.float16, np.float16, np.dtype("float16")]
CFG = {"d_sae": 16, "d_in": 6, "hook_name": "h", "device": "cpu"}


@pytest.mark.parametrize("dtype", SPELLINGS, ids=repr)
def test_every_spelling_is_the_same_dtype(dtype):
    assert HookedSAEConfig(**CFG, dtype=dtype) == HookedSAEConfig(**CFG, dtype=torch.float16)
    assert HookedSAE({**CFG, "dtype": dtype}).W_enc.dtype == torch.float16
    loaded = load(TINY, dtype=dtype)
    assert loaded.cfg.dtype is loaded.W_enc.dtype is torch.float16
    converted = in_dtype(make_sae(), dtype)
    assert converted.cfg.dtype is converted.W_enc.dtype is torch.float16
    assert in_dtype(converted, dtype) is converted


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_bfloat16_which_numpy_lacks(dtype):
    assert torch_dtype(dtype) is torch.bfloat16


@pytest.mark.parametrize("dtype", ["half", "int4", torch.complex64, None, dict])
def test_other_values_are_refused(dtype):
    with pytest.raises(InputError, match="it must be one of float32, float16, bfloat16"):
        torch_dtype(dtype)


@pytest.mark.parametrize("dtype", ["int64", torch.int32, np.int64])
def test_weights_cannot_be_integers(dtype):
    with pytest.raises(InputError, match="the weights of an SAE may be float32, float64, float16, bfloat16"):
        HookedSAEConfig(**CFG, dtype=dtype)
    with pytest.raises(InputError, match="the weights of an SAE may be"):
        load(TINY, dtype=dtype)

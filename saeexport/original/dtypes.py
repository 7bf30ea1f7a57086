"""The dtypes of PyTorch by the names that checkpoints and artifacts use."""

from typing import Any, TypeAlias

import numpy as np
import torch

from runtime.arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32, dtype_name
from runtime.errors import InputError

DTypeLike: TypeAlias = str | torch.dtype | np.dtype[Any] | type
"""A dtype as every `dtype` argument of `saeexport` accepts it: "float16", `torch.float16`, `numpy.float16`."""

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in (FLOAT32, "float64", FLOAT16, BFLOAT16)}
"""The dtypes that the weights of an SAE may have, by name."""


def torch_dtype(dtype: DTypeLike) -> torch.dtype:
    """Return a dtype as a `torch.dtype`.

    Raises:
        InputError: It is not a dtype that the weights of an SAE may have.
    """
    name = dtype_name(dtype)
    if name not in TORCH_DTYPES:
        raise InputError(f"dtype is {dtype!r}; the weights of an SAE may be {', '.join(TORCH_DTYPES)}.")
    return TORCH_DTYPES[name]

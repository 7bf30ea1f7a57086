"""Tensors as the Open Inference Protocol (V2) describes them, which MLServer, KServe and Triton speak.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, "Tensor
Data Types".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ..arrays.tensor import Array
from ..artifact.manifest import TensorSpec
from ..errors import InputError

DATATYPES = {FLOAT32: "FP32", FLOAT16: "FP16", BFLOAT16: "BF16", "int64": "INT64"}
"""The protocol's names of the dtypes that graphs have."""

NUMBERS: dict[str, "np.dtype[Any]"] = {
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
"""The datatypes that JSON and gRPC can carry as numbers, and their dtypes in NumPy."""


def dimensions(spec: TensorSpec) -> list[int]:
    """Return the shape of a tensor, with -1 for a dimension that may have any size."""
    return [-1 if isinstance(size, str) else size for size in spec.shape]


def array_of(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """Return the array of a tensor in a request.

    Args:
        name: Name of the tensor, for messages.
        datatype: The protocol's name of its dtype.
        shape: Its shape.
        data: Its numbers, flat or nested. None stands for NaN, which JSON does not have.

    Raises:
        InputError: The datatype is not one of numbers, or the data do not have it, or do not fit the shape.
    """
    if datatype not in NUMBERS:
        raise InputError(f"{name} has the datatype {datatype}; it must be one of {', '.join(NUMBERS)}.")
    dtype = NUMBERS[datatype]
    try:
        array = np.array(data)
        if array.dtype.kind not in ("iu" if dtype.kind in "iu" else "iufO") and array.size:
            raise ValueError(f"they are {array.dtype.name}")  # numpy would read text and bools as numbers
        if array.dtype.kind == "O":  # None, or integers that are too large for int64
            if any(isinstance(value, (str, bytes)) for value in array.flat):
                raise ValueError("some are text")
            array = array.astype(np.float64)
        if dtype.kind in "iu" and array.size:
            limits = np.iinfo(dtype)
            if not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
                raise ValueError(f"a number is not of {datatype}")
        with np.errstate(over="raise"):
            array = array.astype(dtype, copy=False)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"The data of {name} are not numbers of {datatype}: {error}.") from None
    try:
        if any(size < 0 for size in shape):
            raise ValueError
        return array.reshape(shape)
    except (TypeError, ValueError):
        raise InputError(f"{name} has the shape {list(shape)} and {array.size} numbers of data.") from None

"""The dtypes of an SAE: float32, float16 and bfloat16, of which numpy knows two.

numpy has no bfloat16. Here its numbers are kept as their 16 bits, `uint16`, and what computes with them takes float32,
which holds every one of them exactly: a bfloat16 is the upper half of a float32.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"


@dataclass(frozen=True)
class DType:
    """A dtype, as others call it.

    Attributes:
        storage: numpy's dtype that keeps its bits.
        onnx: its number in ONNX (`onnx.TensorProto.DataType`).
        dlpack: its code in DLPack (`DLDataTypeCode`): 0 signed, 1 unsigned, 2 float, 4 bfloat16.
        bits: of one number.
    """

    storage: "np.dtype[Any]"
    onnx: int
    dlpack: int
    bits: int


DTYPES = {
    FLOAT32: DType(np.dtype(np.float32), 1, 2, 32),
    FLOAT16: DType(np.dtype(np.float16), 10, 2, 16),
    BFLOAT16: DType(np.dtype(np.uint16), 16, 4, 16),
    "float64": DType(np.dtype(np.float64), 11, 2, 64),
    "int64": DType(np.dtype(np.int64), 7, 0, 64),
    "int32": DType(np.dtype(np.int32), 6, 0, 32),
}
"""Those of an SAE, and what else may be given to one or comes of one."""


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, such as "float16", however it is spelled.

    Args:
        dtype: A name ("float16" or "torch.float16"), a `torch.dtype`, or a dtype or scalar type of numpy or ml_dtypes.

    Raises:
        InputError: It is none of these, or not a dtype in `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")  # str(torch.float16) is "torch.float16": torch need not be imported
    if name not in DTYPES and isinstance(dtype, (type, np.dtype)):
        with contextlib.suppress(TypeError):  # raised for a class that is not a scalar type
            name = np.dtype(dtype).name
    if name not in DTYPES:
        raise InputError(
            f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}, given as a string, a torch.dtype or a numpy "
            "dtype."
        )
    return name


def storage(name: str) -> "np.dtype[Any]":
    """Return numpy's dtype that keeps the bits of a dtype."""
    return DTYPES[name].storage if name in DTYPES else np.dtype(name)


def widened(bits: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return numbers that are kept as `storage(dtype)` as numpy can compute with them; of bfloat16 a copy."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if dtype == BFLOAT16 else bits


def narrowed(values: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    """Return numbers rounded to the nearest of a dtype, in a tie to the even one, as `storage(dtype)` keeps them."""
    array = np.asarray(values)
    if dtype != BFLOAT16:
        return array.astype(storage(dtype))
    exact = array.astype(np.float32)
    bits = exact.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    # A NaN whose payload is in the lower half would round to infinity.
    return np.where(np.isnan(exact), ((bits >> 16) | 0x0040).astype(np.uint16), rounded)


def rounded(values: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    """Return numbers rounded to a dtype, as numpy can compute with them: of bfloat16 in float32."""
    return widened(narrowed(values, dtype), dtype)

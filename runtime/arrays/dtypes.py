"""The dtypes of an SAE and of its inputs, each with its name in every library and file format.

numpy has no bfloat16 of its own. Importing ml_dtypes registers one, so that `np.dtype("bfloat16")` and
`x.astype("bfloat16")` work, and a bfloat16 array is a `numpy.ndarray` like any other.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import InputError

FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"

SIGNED, UNSIGNED, FLOAT, BRAIN_FLOAT = 0, 1, 2, 4
"""`DLDataTypeCode`."""


@dataclass(frozen=True)
class DType:
    """A dtype as numpy, ONNX, DLPack and safetensors call it.

    Attributes:
        numpy: The dtype in numpy; bfloat16 is the one that ml_dtypes registers.
        onnx: Number in ONNX, `onnx.TensorProto.DataType`.
        onnx_name: Name in the types of ONNX Runtime, such as "float" in "tensor(float)".
        dlpack: Kind in DLPack, `DLDataTypeCode`.
        safetensors: Name in the header of a safetensors file.
    """

    numpy: "np.dtype[Any]"
    onnx: int
    onnx_name: str
    dlpack: int
    safetensors: str

    @property
    def bits(self) -> int:
        """The size of one element in bits."""
        return self.numpy.itemsize * 8

    @property
    def element_type(self) -> "np.dtype[Any] | int":
        """The dtype as ONNX Runtime's bindings take it: numpy's, or for bfloat16 the number in ONNX."""
        return self.onnx if self.dlpack == BRAIN_FLOAT else self.numpy


DTYPES = {
    FLOAT32: DType(np.dtype(np.float32), 1, "float", FLOAT, "F32"),
    FLOAT16: DType(np.dtype(np.float16), 10, "float16", FLOAT, "F16"),
    BFLOAT16: DType(np.dtype(ml_dtypes.bfloat16), 16, "bfloat16", BRAIN_FLOAT, "BF16"),
    "float64": DType(np.dtype(np.float64), 11, "double", FLOAT, "F64"),
    "int64": DType(np.dtype(np.int64), 7, "int64", SIGNED, "I64"),
    "int32": DType(np.dtype(np.int32), 6, "int32", SIGNED, "I32"),
    "int16": DType(np.dtype(np.int16), 5, "int16", SIGNED, "I16"),
    "int8": DType(np.dtype(np.int8), 3, "int8", SIGNED, "I8"),
    "uint64": DType(np.dtype(np.uint64), 13, "uint64", UNSIGNED, "U64"),
    "uint32": DType(np.dtype(np.uint32), 12, "uint32", UNSIGNED, "U32"),
    "uint16": DType(np.dtype(np.uint16), 4, "uint16", UNSIGNED, "U16"),
    "uint8": DType(np.dtype(np.uint8), 2, "uint8", UNSIGNED, "U8"),
}
"""Every known dtype by its name: first those that an SAE can have, then those that a caller may pass or get."""

SAE_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)
"""The dtypes that an SAE can have."""


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


def is_float(dtype: "np.dtype[Any]") -> bool:
    """Return whether a dtype is a floating-point one; `dtype.kind` of ml_dtypes' bfloat16 is "V"."""
    return dtype.kind == "f" or dtype == DTYPES[BFLOAT16].numpy


def widened(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a bfloat16 array as float32, which holds each of its values exactly, and any other array as it is."""
    return array.astype(np.float32) if array.dtype == DTYPES[BFLOAT16].numpy else array


def rounded(values: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    """Return values rounded to a dtype, to nearest with ties to even. bfloat16 values are in a float32 array."""
    return widened(np.asarray(values).astype(dtype))

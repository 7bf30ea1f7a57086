"""The parameters of an SAE as arrays: the weights file of the artifact, mapped into memory."""

from pathlib import Path

import numpy as np

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import Array
from ..artifact.tensorfile import read_header

_DTYPE_OF = {dtype.safetensors: dtype.numpy for dtype in DTYPES.values()}


def map_parameters(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file as read-only arrays, mapped and not loaded.

    bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
        ArtifactError: The file is not safetensors.
    """
    arrays = {}
    file = np.memmap(path, np.uint8, "r")
    for name, stored in read_header(path).items():
        if stored.dtype not in _DTYPE_OF:  # such as a mask of booleans, which is not a parameter
            continue
        content = np.asarray(file[stored.offset : stored.offset + stored.nbytes])
        arrays[name] = content.view(_DTYPE_OF[stored.dtype]).reshape(stored.shape)
    return arrays


def parameter(parameters: dict[str, Array], name: str, architecture: str) -> Array:
    """Return one of the parameters.

    Raises:
        AttributeError: The parameter does not exist; the message lists those that do.
    """
    if name in parameters:
        return parameters[name]
    parts = [part for part in parameters if part.startswith(f"{name}.")]
    if parts:
        raise AttributeError(f"{name} is stored as int8 ({', '.join(parts)}); take it from the float32 artifact.")
    raise AttributeError(
        f"This {architecture} SAE does not have the parameter {name}; it has {', '.join(sorted(parameters))}."
    )

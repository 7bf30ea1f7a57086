"""The parameters of an artifact on a GPU, once for all of its graphs.

A session of ONNX Runtime copies its initializers to the card; five graphs would hold five copies. It reads those that
`SessionOptions.add_initializer` gives it where they are, if they are on the device that it would copy them to, and else
says so in its log and copies.

Source: https://github.com/microsoft/onnxruntime/pull/5092.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ...arrays.dtypes import DTYPES, SAE_DTYPES
from ...arrays.tensor import Tensor
from ...artifact.tensorfile import read_header
from .memory import DeviceMemory

PARAMETER_DTYPES = {DTYPES[name].safetensors: name for name in SAE_DTYPES}
"""From safetensors' names to ours. Parameters of other dtypes, such as indices, are left to ONNX Runtime."""


class DeviceWeights:
    """The parameters of one file, copied to the card when they are first asked for."""

    def __init__(self, path: Path, memory: DeviceMemory) -> None:
        self._path = path
        self._memory = memory
        self._values: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """Return the parameters as `onnxruntime.OrtValue` by their names, which are those of the graphs' initializers.

        Empty where ONNX Runtime cannot take them over: in older releases, such as 1.23, OrtValue reads no DLPack. There
        every session copies what it needs.
        """
        if not hasattr(ort.OrtValue, "from_dlpack"):
            return {}
        if self._values is None:
            loaded = self._loaded().items()
            self._values = {name: ort.OrtValue.from_dlpack(tensor.__dlpack__(stream=-1)) for name, tensor in loaded}
        return self._values

    def close(self) -> None:
        """Let go of the parameters; what still runs holds them."""
        self._values = None

    def _loaded(self) -> dict[str, Tensor]:
        stored = {name: tensor for name, tensor in read_header(self._path).items() if tensor.dtype in PARAMETER_DTYPES}
        tensors = self._memory.tensors([(tensor.shape, PARAMETER_DTYPES[tensor.dtype]) for tensor in stored.values()])
        file = np.memmap(self._path, np.uint8, "r")
        for source, target in zip(stored.values(), tensors, strict=True):
            address = file.ctypes.data + source.offset
            self._memory.card.copy(target.pointer, address, target.nbytes, self._memory.stream)
        self._memory.card.synchronize(self._memory.stream)  # before the file may go
        return dict(zip(stored, tensors, strict=True))

"""The parameters of an artifact on a GPU, in one copy that all of its graphs share.

An ONNX Runtime session copies its initializers to the GPU, so five graphs would hold five copies. It uses initializers
from `SessionOptions.add_initializer` in place if they are on the device that it would copy them to. Otherwise it logs
that they are not, and copies them.

Source: https://github.com/microsoft/onnxruntime/pull/5092.
"""

from typing import Any

import onnxruntime as ort

from ...arrays.dtypes import DTYPES, SAE_DTYPES
from ...arrays.tensor import Tensor
from ...artifact.files import OpenedFile
from ...artifact.tensorfile import parse_header
from .memory import DeviceMemory

PARAMETER_DTYPES = {DTYPES[name].safetensors: name for name in SAE_DTYPES}
"""Our names by the safetensors names of the shared parameters' dtypes. ONNX Runtime loads other parameters itself, such
as indices."""


class DeviceWeights:
    """The parameters of one file, copied to the GPU when they are first needed.

    Args:
        file: The safetensors file, open.
        memory: Memory of the GPU.
    """

    def __init__(self, file: OpenedFile, memory: DeviceMemory) -> None:
        self._file = file
        self._memory = memory
        self._values: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """Return the parameters as `onnxruntime.OrtValue`, by the names of the graphs' initializers.

        Older releases of ONNX Runtime, such as 1.23, cannot make an OrtValue from DLPack. With them the result is
        empty, and every session copies the parameters that it needs.
        """
        if not hasattr(ort.OrtValue, "from_dlpack"):
            return {}
        if self._values is None:
            loaded = self._load().items()
            self._values = {name: ort.OrtValue.from_dlpack(tensor.__dlpack__(stream=-1)) for name, tensor in loaded}
        return self._values

    def close(self) -> None:
        """Drop the parameters. Their memory is freed when the last session that uses them ends."""
        self._values = None

    def _load(self) -> dict[str, Tensor]:
        content = self._file.map()
        header = parse_header(content, self._file.path)
        stored = {name: tensor for name, tensor in header.items() if tensor.dtype in PARAMETER_DTYPES}
        tensors = self._memory.tensors([(tensor.shape, PARAMETER_DTYPES[tensor.dtype]) for tensor in stored.values()])
        for source, target in zip(stored.values(), tensors, strict=True):
            address = content.ctypes.data + source.offset
            self._memory.card.copy(target.pointer, address, target.nbytes, self._memory.stream)
        self._memory.card.synchronize(self._memory.stream)  # before the file may be unmapped
        self._file.forget_pages()
        return dict(zip(stored, tensors, strict=True))

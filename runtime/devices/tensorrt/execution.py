"""Running graphs by TensorRT, which builds an engine of each for this GPU and keeps it."""

from pathlib import Path

import onnxruntime as ort

from ...artifact.folder import Artifact
from ...errors import InputError, ProviderError
from ..cuda.driver import driver
from ..cuda.execution import CudaBackend
from ..options import Options
from ..start import Device, start_session
from .library import missing_tensorrt, tensorrt_version
from .options import Shapes, Versions, building, provider_options

USUAL_TOKENS = 64
"""For how many an engine is fastest; it runs up to a block."""


class TensorRTBackend(CudaBackend):
    """A GPU's side of a session by TensorRT. Memory, streams and order are those of CUDA."""

    def __init__(self, device: Device, options: Options, artifact: Artifact, block_tokens: int) -> None:
        if options.cuda_graph:
            raise InputError(
                'cuda_graph is for device="cuda": what TensorRT captures cannot be told apart by its size.'
            )
        super().__init__(device, options, artifact, block_tokens)
        self._artifact = artifact
        self._shapes = Shapes(block_tokens, usual_tokens=min(USUAL_TOKENS, block_tokens))

    def start(self, graph: str, path: Path) -> ort.InferenceSession:
        """Return a session of a graph; the first time on this kind of GPU an engine is built, which takes minutes."""
        version = tensorrt_version()
        if version is None:
            raise ProviderError(missing_tensorrt())
        asked = self._options
        options = provider_options(
            self._artifact,
            graph,
            driver().gpus()[self._device.index],
            Versions(version, ort.__version__),
            self._shapes,
            precision=asked.precision,
            root=None if asked.cache is None else Path(asked.cache),
            stream=self.stream,
            extra={} if asked.memory_limit is None else {"trt_max_workspace_size": str(asked.memory_limit)},
        )
        with self._card.exclusive(), building(options):
            self._check_open()
            return start_session(str(path), self._device, options, threads=asked.threads)

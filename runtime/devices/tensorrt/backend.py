"""The TensorRT backend. TensorRT builds an engine of each graph for this GPU, and the engines are kept."""

from pathlib import Path

import onnxruntime as ort

from ...artifact.folder import Artifact
from ...artifact.held import HeldFiles
from ...errors import InputError, ProviderError
from ..cuda.backend import CudaBackend
from ..cuda.driver import driver
from ..options import Options
from ..start import Device, start_session
from .library import missing_tensorrt, tensorrt_version
from .options import Shapes, Versions, building, provider_options

USUAL_TOKENS = 64
"""Number of tokens that an engine is tuned for. It runs any number up to a block."""


class TensorRTBackend(CudaBackend):
    """Runs graphs with TensorRT. Memory, streams and their order are those of `CudaBackend`."""

    def __init__(
        self, device: Device, options: Options, artifact: Artifact, files: HeldFiles, block_tokens: int
    ) -> None:
        if options.cuda_graph:
            raise InputError('cuda_graph is for device="cuda", not for TensorRT, which launches few kernels anyway.')
        super().__init__(device, options, artifact, files, block_tokens)
        self._artifact = artifact
        self._shapes = Shapes(block_tokens, usual_tokens=min(USUAL_TOKENS, block_tokens))

    def load_graph(self, graph: str, files: HeldFiles) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a graph.

        The first time on a kind of GPU, TensorRT builds an engine, which takes from seconds to minutes.

        Raises:
            ProviderError: TensorRT is missing, or it cannot run the graph.
            IntegrityError: The artifact was replaced after it was opened.
        """
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
        with self._card.exclusive(), building(options), files.at_path(graph) as path:
            self._memory.check_open()
            return self._kept_until_done(start_session(str(path), self._device, options, threads=asked.threads))

"""The contenders that this project's runtime runs, as its user calls it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import contenders as names
from benchmarks.gpu.agreement import TOP, dense
from benchmarks.gpu.contenders import GRAPHED_ROWS, K, Makers, Way
from benchmarks.gpu.device import Cuda, Device
from runtime import SAESession
from runtime.arrays.dtypes import BFLOAT16, FLOAT32
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES
from runtime.devices.options import TF32


class Sessions:
    """The sessions of an artifact, with and without CUDA graphs, each opened when it is first needed."""

    def __init__(self, artifact: Path, device: Device, precision: str, graphed_rows: Sequence[int]) -> None:
        self._artifact = artifact
        self._device = device
        self._precision = TF32 if precision == TF32 else FLOAT32
        self._graphed_rows = tuple(graphed_rows)
        self._open: dict[bool, SAESession] = {}
        self._stack = ExitStack()

    def session(self, graphed: bool = False) -> SAESession:
        """Return the session with or without CUDA graphs, which queues its work on the stream that PyTorch uses."""
        if graphed not in self._open:
            options: dict[str, Any] = {}
            if isinstance(self._device, Cuda):
                options = {"precision": self._precision, "cuda_graph": self._graphed_rows if graphed else (),
                           "stream": self._device.stream}  # fmt: skip
            # The weights may have been drawn again on another processor, see `subjects.fill_in_weights`.
            session = SAESession(self._artifact, str(self._device.torch), check_integrity=False, **options)
            self._open[graphed] = self._stack.enter_context(session)
        return self._open[graphed]

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.close()

    def ways(self, inputs: Sequence[Tensor], d_sae: int) -> Makers:
        """Return this project's contenders for some sets of inputs."""
        on_host = [host_array(x) for x in inputs]
        on_device = inputs if isinstance(self._device, Cuda) else on_host

        def hooks(graphed: bool, given: Sequence[Any]) -> Way:
            session = self.session(graphed)
            return Way(given, lambda x: session.compute(x, HOOK_NAMES), torch_tensors)

        def encoder() -> Way:
            session = self.session()
            return Way(on_device, lambda x: session.compute(x, [HOOK_ACTS_POST]), torch_tensors)

        def top() -> Way:
            session = self.session()

            def found(result: Any) -> dict[str, Tensor]:
                indices, values, _ = (torch_tensor(array) for array in result)
                return {TOP: dense(indices, values, d_sae)}

            return Way(on_device, lambda x: session.top_features(x, min(K, d_sae)), found)

        makers: Makers = {
            names.THIS: lambda: hooks(False, on_device),
            names.THIS_HOST: lambda: hooks(False, on_host),
            names.THIS_ENCODE: encoder,
            names.THIS_TOP: top,
        }
        if isinstance(self._device, Cuda) and len(inputs[0]) in GRAPHED_ROWS:
            makers[names.THIS_GRAPH] = lambda: hooks(True, on_device)
        return makers


def torch_tensors(hooks: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return hooks as PyTorch's, without a copy."""
    return {name: torch_tensor(array) for name, array in hooks.items()}


def torch_tensor(array: Any) -> Tensor:
    """Return a result as a PyTorch tensor, without a copy; PyTorch reads no bfloat16 array of numpy but its bits."""
    if isinstance(array, np.ndarray) and array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def host_array(x: Tensor) -> Any:
    """Return a tensor as a numpy array, which is what a service has."""
    x = x.cpu()
    return x.view(torch.uint16).numpy().view(BFLOAT16) if x.dtype == torch.bfloat16 else x.numpy()

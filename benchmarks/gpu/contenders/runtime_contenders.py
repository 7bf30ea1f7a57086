"""The contenders that `SAESession` runs, as its user calls it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.contenders import names
from benchmarks.gpu.contenders.agreement import TOP, WATCH, scatter_top
from benchmarks.gpu.contenders.names import GRAPHED_ROWS, TOP_K, Contender, Factories
from benchmarks.gpu.device import Cuda, Device
from runtime import SAESession
from runtime.arrays.dtypes import BFLOAT16, FLOAT32
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES
from runtime.devices.options import TF32


class Sessions:
    """The sessions of an artifact, with and without CUDA graphs. Each is opened when it is first needed."""

    def __init__(self, artifact: Path, device: Device, precision: str, graphed_rows: Sequence[int]) -> None:
        self._artifact = artifact
        self._device = device
        self._precision = TF32 if precision == TF32 else FLOAT32
        self._graphed_rows = tuple(graphed_rows)
        self._open: dict[bool, SAESession] = {}
        self._stack = ExitStack()

    def session(self, graphed: bool = False) -> SAESession:
        """Return the session with or without CUDA graphs. It queues its work on the stream that PyTorch uses."""
        if graphed not in self._open:
            options: dict[str, Any] = {}
            if isinstance(self._device, Cuda):
                options = {"precision": self._precision, "cuda_graph": self._graphed_rows if graphed else (),
                           "stream": self._device.stream}  # fmt: skip
            # The weights may have been drawn again on another processor, see `artifacts.fill_in_weights`.
            session = SAESession(self._artifact, str(self._device.torch), check_integrity=False, **options)
            self._open[graphed] = self._stack.enter_context(session)
        return self._open[graphed]

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def contenders(self, inputs: Sequence[Tensor], d_sae: int, watched: Tensor) -> Factories:
        """Return this project's contenders for some sets of inputs, of which features are watched."""
        on_host = [host_array(x) for x in inputs]
        on_device = inputs if isinstance(self._device, Cuda) else on_host

        def hooks(graphed: bool, inputs: Sequence[Any]) -> Contender:
            session = self.session(graphed)
            return Contender(inputs, lambda x: session.compute(x, HOOK_NAMES), torch_tensors)

        def encoder() -> Contender:
            session = self.session()
            return Contender(on_device, lambda x: session.compute(x, [HOOK_ACTS_POST]), torch_tensors)

        def top() -> Contender:
            session = self.session()

            def tensors(result: Any) -> dict[str, Tensor]:
                indices, values, _ = (torch_tensor(array) for array in result)
                return {TOP: scatter_top(indices, values, d_sae)}

            return Contender(on_device, lambda x: session.top_features(x, min(TOP_K, d_sae)), tensors)

        def watch() -> Contender:
            return Contender(
                on_device, self.session().watch(watched.tolist()), lambda acts: {WATCH: torch_tensor(acts)}
            )

        factories: Factories = {
            names.THIS: lambda: hooks(False, on_device),
            names.THIS_HOST: lambda: hooks(False, on_host),
            names.THIS_ENCODE: encoder,
            names.THIS_TOP: top,
            names.THIS_WATCH: watch,
        }
        if isinstance(self._device, Cuda) and len(inputs[0]) in GRAPHED_ROWS:
            factories[names.THIS_GRAPH] = lambda: hooks(True, on_device)
        return factories


def torch_tensors(hooks: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return hooks as PyTorch tensors, without a copy."""
    return {name: torch_tensor(array) for name, array in hooks.items()}


def torch_tensor(array: Any) -> Tensor:
    """Return a result as a PyTorch tensor, without a copy. PyTorch cannot read a bfloat16 array, only its bits."""
    if isinstance(array, np.ndarray) and array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def host_array(x: Tensor) -> Any:
    """Return a tensor as a service has it: as a NumPy array."""
    x = x.cpu()
    return x.view(torch.uint16).numpy().view(BFLOAT16) if x.dtype == torch.bfloat16 else x.numpy()

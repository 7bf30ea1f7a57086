"""The CPU backend: it runs graphs from numpy arrays to numpy arrays."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.pool import BufferPool
from ..arrays.tensor import Array, TensorValue, as_given
from ..artifact.held import HeldFolder
from ..artifact.manifest import GraphSpec
from .blocks import output_dimensions, slice_feeds
from .loading import parameter_values, start_on_checked_bytes
from .options import Options
from .start import CPU, Device, start_session


class CpuBackend:
    """Runs graphs on the CPU; see `runtime.devices.backend.Backend`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._memory = BufferPool(keep=options.arena)

    def load_graph(self, graph: str, files: HeldFolder) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a graph, from the bytes that were checked.

        The session uses the mapped weights in place.

        Raises:
            ProviderError: The artifact is in bfloat16, and this ONNX Runtime is too old for it.
        """
        values = parameter_values(graph, files)
        start = functools.partial(
            start_session, device=Device(CPU), threads=self._options.threads, arena=self._options.arena, weights=values
        )
        session = start_on_checked_bytes(graph, files, values, start)
        files.forget_pages()  # ONNX Runtime has repacked most of them
        return session

    def load_model(self, model: bytes) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a model with its parameters inside."""
        return start_session(model, Device(CPU), threads=self._options.threads, arena=self._options.arena)

    def import_array(self, x: Any) -> TensorValue:
        """Return a caller's array without a copy; see `as_given`."""
        return as_given(x)

    def run(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[TensorValue]:
        """Run a graph block by block and return some of its outputs.

        Each block writes its rows of the result in place, so nothing is copied.
        """
        arrays = {name: np.asarray(feed) for name, feed in feeds.items()}
        tensors = {tensor.name: tensor for tensor in spec.outputs}
        dtypes = {*(array.dtype.name for array in arrays.values()), *(tensors[name].dtype for name in names)}
        if len(sizes) == 1 and BFLOAT16 not in dtypes:  # `run` does not take ml_dtypes' arrays; a binding takes memory
            return session.run(list(names), arrays)
        tokens, dimensions = sum(sizes), output_dimensions(spec, arrays)
        forms = [[dimensions[d] if isinstance(d, str) else d for d in tensors[name].shape] for name in names]
        kinds = [tensors[name].dtype for name in names]
        results = self._memory.arrays([(form, DTYPES[kind].numpy) for form, kind in zip(forms, kinds, strict=True)])
        binding, start = session.io_binding(), 0
        for size in sizes:
            block = slice(start, start + size)
            held = [_bind_input(binding, name, part) for name, part in slice_feeds(spec, arrays, tokens, block).items()]
            for name, kind, result in zip(names, kinds, results, strict=True):
                part = result[block]
                binding.bind_output(name, "cpu", 0, DTYPES[kind].element_type, part.shape, part.ctypes.data)
            session.run_with_iobinding(binding)
            del held
            start += size
        return list(results)

    def add(self, a: TensorValue, b: TensorValue) -> TensorValue:
        """Return the sum of two arrays with the same shape and dtype."""
        return np.add(a, b)

    def move_to_device_of(self, array: TensorValue, tensor: TensorValue) -> TensorValue:
        """Return `array`: everything is on the host."""
        return array

    def release_session(self, session: ort.InferenceSession) -> None:
        """Do nothing: the backend keeps nothing for a session."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


def _bind_input(binding: Any, name: str, feed: Array) -> Array:
    """Bind an input, and return the array that has to stay alive until the run ends."""
    array = np.ascontiguousarray(feed)
    if array.dtype.name == BFLOAT16:
        binding.bind_input(name, "cpu", 0, DTYPES[BFLOAT16].element_type, array.shape, array.ctypes.data)
    else:
        binding.bind_cpu_input(name, array)
    return array

"""Running graphs on the CPU: on numpy arrays, and on tensors of dtypes that numpy has not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES, storage
from ..arrays.pool import BufferPool
from ..arrays.tensor import Tensor, TensorValue, as_given
from ..artifact.manifest import GraphSpec
from .blocks import dimensions_of, part_of
from .options import Options
from .start import CPU, Device, start_session


class CpuBackend:
    """The CPU's side of a session."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._memory = BufferPool(keep=options.arena)

    def start(self, graph: str, path: Path) -> ort.InferenceSession:
        """Return a session of a graph of the artifact, from its file."""
        return start_session(str(path), Device(CPU), threads=self._options.threads, arena=self._options.arena)

    def given(self, x: Any) -> TensorValue:
        """Return what a caller gave; see `as_given`."""
        return as_given(x)

    def run(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        feeds: Mapping[str, TensorValue],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> list[TensorValue]:
        """Run a graph on one block of tokens after the other and return its outputs `names`.

        Each block writes where its part of the result lies, so nothing is copied.
        """
        arrays = {name: feed for name, feed in feeds.items() if isinstance(feed, np.ndarray)}
        tensors = {tensor.name: tensor for tensor in spec.outputs}
        if len(sizes) == 1 and len(arrays) == len(feeds) and all(tensors[name].dtype != BFLOAT16 for name in names):
            return session.run(list(names), arrays)
        tokens, dimensions = sum(sizes), dimensions_of(spec, feeds)
        forms = [[dimensions[d] if isinstance(d, str) else d for d in tensors[name].shape] for name in names]
        kinds = [tensors[name].dtype for name in names]
        results = self._memory.arrays([(form, storage(kind)) for form, kind in zip(forms, kinds, strict=True)])
        binding, start = session.io_binding(), 0
        for size in sizes:
            block = slice(start, start + size)
            held = [_bind_input(binding, name, part) for name, part in part_of(spec, feeds, tokens, block).items()]
            for name, kind, result in zip(names, kinds, results, strict=True):
                part = result[block]
                binding.bind_output(name, "cpu", 0, _element(kind), part.shape, part.ctypes.data)
            session.run_with_iobinding(binding)
            del held
            start += size
        return [
            Tensor.of_bits(result, kind) if kind == BFLOAT16 else result
            for kind, result in zip(kinds, results, strict=True)
        ]

    def add(self, a: TensorValue, b: TensorValue) -> TensorValue:
        """Return the sum of two tensors of one shape and dtype."""
        return added(a, b)

    def move_to_device_of(self, array: TensorValue, tensor: TensorValue) -> TensorValue:
        """Return an array where another one is, which is the host."""
        return array

    def forget(self, session: ort.InferenceSession) -> None:
        """Nothing belongs to a session."""

    def close(self) -> None:
        """There is nothing to close."""


def added(a: TensorValue, b: TensorValue) -> TensorValue:
    """Return the sum of two tensors of the host, of one shape and dtype."""
    if isinstance(a, Tensor):
        return Tensor.of(a.numpy() + np.asarray(b), a.dtype)
    return np.add(a, b)


def _bind_input(binding: Any, name: str, feed: TensorValue) -> TensorValue:
    """Bind an input, and return what has to live until the run is over."""
    if isinstance(feed, Tensor):
        binding.bind_input(name, "cpu", 0, _element(feed.dtype), feed.shape, feed.pointer)
        return feed
    array = np.ascontiguousarray(feed)
    binding.bind_cpu_input(name, array)
    return array


def _element(dtype: str) -> Any:
    """Return a dtype as ONNX Runtime's bindings take it: numpy's, or where numpy has none ONNX's number."""
    return DTYPES[dtype].onnx if dtype == BFLOAT16 else storage(dtype)

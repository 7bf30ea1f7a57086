"""The CPU backend: it runs graphs from numpy arrays to numpy arrays."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.pool import BufferPool
from ..arrays.tensor import Array, TensorValue, as_given
from ..artifact.held import HeldFolder
from ..artifact.manifest import GraphSpec
from .background import repeatedly
from .blocks import output_dimensions, slice_feeds
from .loading import parameter_values, start_on_checked_bytes
from .options import Options
from .staged import SharedStages, StagedSession, Step, chain_of
from .start import CPU, Device, start_session

PAGE_SECONDS = 0.005
"""Seconds after which the pages of the weights that a starting session has read go back to the system."""


class CpuBackend:
    """Runs graphs on the CPU; see `runtime.devices.backend.Backend`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._memory = BufferPool(keep=options.arena)
        self._stages = SharedStages(self._start)

    def load_graph(self, graph: str, files: HeldFolder) -> ort.InferenceSession | StagedSession:
        """Start an ONNX Runtime session of a graph, from the bytes that were checked, or a chain of sessions.

        The sessions use the mapped weights in place. Stages that other graphs have started are not started again.

        Raises:
            ProviderError: The artifact is in bfloat16, and this ONNX Runtime is too old for it.
        """
        shared = self._stages.load(graph, files) if self._options.shared_stages else None
        return shared or self._start(graph, files)

    def runs_in_stages(self, graph: str, files: HeldFolder) -> bool:
        """Tell whether a graph runs as a chain of sessions, which compute only what is asked for."""
        return self._options.shared_stages and self._stages.has(graph, files)

    def _start(self, graph: str, files: HeldFolder, part: bytes | None = None) -> ort.InferenceSession:
        """Start a session of a graph, or of a model that was cut out of it."""
        values = parameter_values(graph, files, part)
        start = functools.partial(
            start_session, device=Device(CPU), threads=self._options.threads, arena=self._options.arena, weights=values
        )
        with repeatedly(files.forget_pages, PAGE_SECONDS):  # ONNX Runtime repacks most of them
            return start_on_checked_bytes(graph, files, values, start, part)

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
        steps = chain_of(session, names, tuple(arrays))
        if len(sizes) == 1 and BFLOAT16 not in dtypes:  # `run` does not take ml_dtypes' arrays; a binding takes memory
            return _run_at_once(steps, names, arrays, sizes[0])
        tokens, dimensions = sum(sizes), output_dimensions(spec, arrays)
        forms = [[dimensions[d] if isinstance(d, str) else d for d in tensors[name].shape] for name in names]
        kinds = [tensors[name].dtype for name in names]
        results = self._memory.arrays([(form, DTYPES[kind].numpy) for form, kind in zip(forms, kinds, strict=True)])
        start = 0
        for size in sizes:
            block = slice(start, start + size)
            parts = {
                name: _Target(kind, result[block]) for name, kind, result in zip(names, kinds, results, strict=True)
            }
            _run_block(steps, slice_feeds(spec, arrays, tokens, block), parts, size)
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


class _Target(NamedTuple):
    """An array that a result is written to, with the name of its dtype."""

    dtype: str
    array: Array

    def bind(self, binding: Any, output: str) -> None:
        """Bind an output of a session to the array."""
        kind = DTYPES[self.dtype].element_type
        binding.bind_output(output, "cpu", 0, kind, self.array.shape, self.array.ctypes.data)


def _run_at_once(
    steps: Sequence[Step], names: Sequence[str], feeds: Mapping[str, Array], tokens: int
) -> list[TensorValue]:
    """Run a chain of sessions and return some of its values, in arrays of ONNX Runtime."""
    values = dict(feeds)
    for step in steps:
        given = {inner: _value(values, step, inner, tokens) for inner in step.inputs}
        values.update(zip(step.outputs, step.session.run(list(step.outputs.values()), given), strict=True))
    return [values[name] for name in names]


def _run_block(steps: Sequence[Step], feeds: Mapping[str, Array], targets: Mapping[str, _Target], tokens: int) -> None:
    """Run a chain of sessions, and let it write some of its values into arrays.

    The others stay in the memory of ONNX Runtime, from which the next session reads them.
    """
    values: dict[str, Any] = dict(feeds)
    for step in steps:
        binding = step.session.io_binding()
        held = [_bind_input(binding, inner, _value(values, step, inner, tokens)) for inner in step.inputs]
        for name, output in step.outputs.items():
            if name in targets:
                targets[name].bind(binding, output)
            else:
                binding.bind_output(output)
        step.session.run_with_iobinding(binding)
        del held
        for name, value in zip(step.outputs, binding.get_outputs(), strict=True):
            values[name] = targets[name].array if name in targets else value


def _value(values: Mapping[str, Any], step: Step, inner: str, tokens: int) -> Any:
    """Return the value for an input of a session.

    A stage may take an input that its graph does not have, because it also computes values that are not asked for. It
    gets zeros.
    """
    name = step.inputs[inner]
    if name in values:
        return values[name]
    argument = next(argument for argument in step.session.get_inputs() if argument.name == inner)
    dtype = next(dtype for dtype in DTYPES.values() if argument.type == f"tensor({dtype.onnx_name})")
    return np.zeros((tokens, *argument.shape[1:]), dtype.numpy)


def _bind_input(binding: Any, name: str, feed: Any) -> Any:
    """Bind an input, an array or a value of ONNX Runtime, and return what has to stay alive until the run ends."""
    if not isinstance(feed, np.ndarray):
        binding.bind_ortvalue_input(name, feed)
        return feed
    array = np.ascontiguousarray(feed)
    if array.dtype.name == BFLOAT16:
        binding.bind_input(name, "cpu", 0, DTYPES[BFLOAT16].element_type, array.shape, array.ctypes.data)
    else:
        binding.bind_cpu_input(name, array)
    return array

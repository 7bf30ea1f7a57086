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
from ..artifact.names import TOKENS
from .background import repeatedly
from .blocks import output_dimensions, slice_feeds
from .loading import parameter_values, start_on_checked_bytes
from .options import Options
from .staged import SharedStages, StagedSession, Step, chain_of
from .start import CPU, Device, start_session

PAGE_SECONDS = 0.005
"""Seconds after which the pages of the weights that a starting session has read go back to the system."""


SMALLEST_BOUND = 4 << 20
"""Bytes of the outputs of a chain from which they are written into memory that all graphs share.

From this size on numpy asks Linux for pages of 2 MB, which take a tenth of the time to clear. Below, the memory of a
session counts little, and a binding would be a part of the time of a call.
"""

KEPT_CALLS = 16
"""Number of calls for which unused memory is kept."""


class CpuBackend:
    """Runs graphs on the CPU; see `runtime.devices.backend.Backend`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._memory = BufferPool(options.arena, calls=KEPT_CALLS)
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
        is_small = len(sizes) == 1 and sizes[0] * sum(step.token_bytes for step in steps) < SMALLEST_BOUND
        if is_small and BFLOAT16 not in dtypes:  # `run` does not take ml_dtypes' arrays; a binding takes memory
            self._memory.arrays([])  # a call that needs none of it
            return _run_at_once(steps, names, arrays, sizes[0])
        tokens, dimensions = sum(sizes), output_dimensions(spec, arrays)
        of_block = {**dimensions, TOKENS: sizes[-1]}  # the last block is the largest
        forms = {name: (_sized(tensors[name].shape, dimensions), tensors[name].dtype) for name in names}
        others = {
            (i, output): (_sized(shape, of_block), dtype)
            for i, step in enumerate(steps)
            for output, (shape, dtype) in step.forms.items()
            if step.value_of.get(output) not in forms and {d for d in shape if isinstance(d, str)} <= of_block.keys()
        }
        wanted = [(shape, DTYPES[dtype].numpy) for shape, dtype in (*forms.values(), *others.values())]
        memory = self._memory.arrays(wanted)
        results = dict(zip(forms, memory, strict=False))
        scratch = dict(zip(others, memory[len(forms) :], strict=True))
        start = 0
        for size in sizes:
            block = slice(start, start + size)
            targets = {name: _Target(forms[name][1], result[block]) for name, result in results.items()}
            more = {key: _Target(others[key][1], array[:size]) for key, array in scratch.items()}
            _run_block(steps, slice_feeds(spec, arrays, tokens, block), targets, more, size)
            start += size
        return [results[name] for name in names]

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


def _run_block(
    steps: Sequence[Step],
    feeds: Mapping[str, Array],
    targets: Mapping[str, _Target],
    others: Mapping[tuple[int, str], _Target],
    tokens: int,
) -> None:
    """Run a chain of sessions, and let them write their outputs into arrays, from which the next session reads them.

    Args:
        steps: The chain.
        feeds: Inputs.
        targets: Arrays of the results, by name of the value.
        others: Arrays of other outputs, by number of the step and name of the output. ONNX Runtime allocates those
            whose shape is not known.
        tokens: Number of tokens.
    """
    values: dict[str, Any] = dict(feeds)
    for i, step in enumerate(steps):
        binding = step.session.io_binding()
        held = [_bind_input(binding, inner, _value(values, step, inner, tokens)) for inner in step.inputs]
        bound = {}
        for output in step.forms:
            name = step.value_of.get(output)
            target = targets[name] if name in targets else others.get((i, output))
            if target is not None:
                target.bind(binding, output)
            elif name is not None:
                binding.bind_output(output)
            if target is not None or name is not None:
                bound[output] = target
        step.session.run_with_iobinding(binding)
        del held
        for (output, target), value in zip(bound.items(), binding.get_outputs(), strict=True):
            if output in step.value_of:
                values[step.value_of[output]] = value if target is None else target.array


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
    kind = DTYPES[array.dtype.name].element_type
    binding.bind_input(name, "cpu", 0, kind, array.shape, array.ctypes.data)
    return array


def _sized(shape: Sequence[int | str], dimensions: Mapping[str, int]) -> list[int]:
    """Return a shape with the sizes of its named dimensions."""
    return [dimensions[d] if isinstance(d, str) else d for d in shape]

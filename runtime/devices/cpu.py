"""The CPU backend: it runs graphs from numpy arrays to numpy arrays."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.pool import BufferPool
from ..arrays.tensor import TensorValue, as_given
from ..artifact.held import HeldFolder
from ..artifact.manifest import GraphSpec
from ..artifact.names import TOKENS
from .background import repeatedly
from .blocks import output_dimensions, slice_feeds
from .chains import Form, Place, run_at_once, run_into, token_bytes
from .loading import parameter_values, start_on_checked_bytes
from .options import Options
from .staged import SharedStages, StagedSession, chain_of
from .start import CPU, Device, start_session

PAGE_SECONDS = 0.005
"""Seconds after which the pages of the weights that a starting session has read go back to the system."""

SMALLEST_BOUND = 24 << 20
"""Bytes of the outputs of a chain from which they are written into memory that all graphs share.

A binding takes longer than `run`. From this size on it gains that time, because the memory is in pages of 2 MB.
"""

KEPT_CALLS = 8
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

    def load_model(self, model: bytes, one_thread: bool) -> ort.InferenceSession:
        """Start an ONNX Runtime session of a model with its parameters inside."""
        threads = 1 if one_thread else self._options.threads
        return start_session(model, Device(CPU), threads=threads, arena=self._options.arena)

    def search_session(self, *_: object) -> None:
        """Return None: on a CPU, `features` takes the least time."""

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
        is_small = len(sizes) == 1 and sizes[0] * sum(token_bytes(step.session) for step in steps) < SMALLEST_BOUND
        if is_small and BFLOAT16 not in dtypes:  # `run` does not take ml_dtypes' arrays; a binding takes memory
            self._memory.arrays([])  # a call that needs none of it
            return run_at_once(steps, names, arrays, sizes[0])
        tokens, dimensions = sum(sizes), output_dimensions(spec, arrays)
        forms: dict[Place, Form] = {name: (tensors[name].shape, DTYPES[tensors[name].dtype].numpy) for name in names}
        more = {place: form for step in steps for place, form in step.places().items() if place not in forms}
        of_block = {**dimensions, TOKENS: sizes[-1]}  # the last block is the largest
        wanted = [(_sized(shape, dimensions), dtype) for shape, dtype in forms.values()]
        wanted += [(_sized(shape, of_block), dtype) for shape, dtype in more.values()]
        memory = dict(zip((*forms, *more), self._memory.arrays(wanted), strict=True))
        start = 0
        for size in sizes:
            block, first = slice(start, start + size), slice(size)
            targets = {place: array[block if place in forms else first] for place, array in memory.items()}
            run_into(steps, slice_feeds(spec, arrays, tokens, block), targets, size)
            start += size
        return [memory[name] for name in names]

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


def _sized(shape: Sequence[int | str], dimensions: Mapping[str, int]) -> list[int]:
    """Return a shape with the sizes of its named dimensions."""
    return [dimensions[d] if isinstance(d, str) else d for d in shape]

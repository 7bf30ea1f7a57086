"""Binds the inputs and outputs of a graph to GPU memory by address."""

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from ...arrays.dtypes import DTYPES
from ...arrays.tensor import Tensor, TensorValue

KEPT_BINDINGS = 64
"""Number of bindings of a session that are kept. Each takes a few kilobytes."""


class Bindings:
    """The last bindings of each session.

    Memory is reused, so calls of one size bind the same addresses again and again, and ONNX Runtime takes longer to
    bind them than to start a small graph.

    Args:
        index: Index of the GPU.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        # A binding keeps the memory of a session, but not the object of Python, whose death drops the bindings.
        self._kept: weakref.WeakKeyDictionary[ort.InferenceSession, dict[object, Any]] = weakref.WeakKeyDictionary()

    def find_or_bind(
        self, session: ort.InferenceSession, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor]
    ) -> Any:
        """Return a binding of a session's inputs and outputs; see `bind`."""
        kept = self._kept.setdefault(session, {})
        key = tuple([
            (name, tensor.shape, tensor.pointer if isinstance(tensor, Tensor) else (tensor.dtype, tensor.tobytes()))
            for name, tensor in (*feeds.items(), *targets.items())
        ])  # fmt: skip
        if key not in kept:
            if len(kept) == KEPT_BINDINGS:
                del kept[next(iter(kept))]
            kept[key] = bind(session, feeds, targets, self._index)
        return kept[key]


def bind(
    session: ort.InferenceSession, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor], index: int
) -> Any:
    """Return a binding of a session's inputs and outputs.

    Args:
        session: Session to bind.
        feeds: Inputs by name, on the GPU, or small ones on the host.
        targets: Tensors on the GPU that the outputs are written to, by name.
        index: Index of the GPU.
    """
    binding = session.io_binding()
    for name, feed in feeds.items():
        if isinstance(feed, Tensor):
            binding.bind_input(name, "cuda", index, DTYPES[feed.dtype].element_type, feed.shape, feed.pointer)
        else:
            binding.bind_cpu_input(name, feed.copy())  # the caller may change its array
    for name, target in targets.items():
        binding.bind_output(name, "cuda", index, DTYPES[target.dtype].element_type, target.shape, target.pointer)
    return binding


@functools.cache
def run_options() -> ort.RunOptions:
    """Return the options of a run that queues its work and returns.

    Source: onnxruntime_run_options_config_keys.h.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    # ONNX Runtime captures nothing here. But before each run its release 1.31 asks for the id of a CUDA graph, and it
    # looks for a missing one by an exception, which takes as long as a small graph.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options

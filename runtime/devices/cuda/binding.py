"""Binds the inputs and outputs of a graph to GPU memory by address."""

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from ...arrays.dtypes import DTYPES
from ...arrays.tensor import Tensor, TensorValue

NOT_CAPTURED = "-1"
"""The `gpu_graph_id` of a run that is neither captured nor replayed."""


def is_on_gpu(feed: TensorValue) -> bool:
    """Tell whether an array is on a GPU."""
    return isinstance(feed, Tensor)


def bind(
    session: ort.InferenceSession, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor], index: int
) -> Any:
    """Return a binding of a session's inputs and outputs.

    Args:
        session: Session to bind.
        feeds: Inputs by name, on the GPU or on the host.
        targets: Tensors on the GPU that the outputs are written to, by name.
        index: Index of the GPU.
    """
    binding = session.io_binding()
    for name, feed in feeds.items():
        if isinstance(feed, Tensor):
            binding.bind_input(name, "cuda", index, DTYPES[feed.dtype].element_type, feed.shape, feed.pointer)
        else:
            binding.bind_cpu_input(name, feed)
    for name, target in targets.items():
        binding.bind_output(name, "cuda", index, DTYPES[target.dtype].element_type, target.shape, target.pointer)
    return binding


def run_options(graph_id: str) -> ort.RunOptions:
    """Return the options of a run that queues its work and returns.

    Args:
        graph_id: Id of the CUDA graph to capture or replay, or `NOT_CAPTURED`, also in a session without CUDA graphs:
            before each run ONNX Runtime 1.31 asks its options for the id, and looks for a missing one by an exception,
            which takes as long as a small graph.

    Source: onnxruntime_run_options_config_keys.h.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options

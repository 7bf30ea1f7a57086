"""Inputs and outputs of a graph bound to memory of a GPU, by their addresses."""

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from ...arrays.dtypes import DTYPES
from ...arrays.tensor import Tensor, TensorValue

NOT_CAPTURED = "-1"
"""The `gpu_graph_id` of a run that takes no part in CUDA graphs."""


def on_device(feed: TensorValue) -> bool:
    """Tell whether an array is on a GPU."""
    return isinstance(feed, Tensor)


def bind(
    session: ort.InferenceSession, feeds: Mapping[str, TensorValue], targets: Mapping[str, Tensor], index: int
) -> Any:
    """Return a binding of a session's inputs, of GPU `index` or of the host, and of its outputs."""
    binding = session.io_binding()
    for name, feed in feeds.items():
        if isinstance(feed, Tensor):
            binding.bind_input(name, "cuda", index, DTYPES[feed.dtype].element_type, feed.shape, feed.pointer)
        else:
            binding.bind_cpu_input(name, feed)
    for name, target in targets.items():
        binding.bind_output(name, "cuda", index, DTYPES[target.dtype].element_type, target.shape, target.pointer)
    return binding


def run_options(graph_id: str | None) -> ort.RunOptions:
    """Return the options of a run that only queues its work.

    Args:
        graph_id: of the CUDA graph that is captured and replayed; None in a session without any.

    Source: onnxruntime_run_options_config_keys.h.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if graph_id is not None:
        options.add_run_config_entry("gpu_graph_id", graph_id)
    return options

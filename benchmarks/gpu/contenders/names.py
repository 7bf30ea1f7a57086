"""The contenders by name, and which of them are compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.shared.timing import fastest

ORIGINAL, ORIGINAL_GRAPH = "original", "original_graph"
DEDUPLICATED, COMPILED, TUNED, REDUCED = "deduplicated", "compiled", "compiled_tuned", "compiled_reduced"
THIS, THIS_GRAPH = "this", "this_graph"
TORCH_HOST, THIS_HOST = "torch_host", "this_host"
TORCH_ENCODE, THIS_ENCODE, TORCH_TOP, THIS_TOP = "torch_encode", "this_encode", "torch_top", "this_top"
TORCH_WATCH, THIS_WATCH = "torch_watch", "this_watch"
ENCODE_PRODUCT, DECODE_PRODUCT, COPY = "encode_product", "decode_product", "copy"

TOP_K = 64
"""The k of `top_features`."""

WATCHED = 64
"""Number of features that are watched."""

TITLES = {
    ORIGINAL: "PyTorch original",
    ORIGINAL_GRAPH: "PyTorch original, CUDA graph",
    DEDUPLICATED: "PyTorch, deduplicated",
    COMPILED: "torch.compile",
    TUNED: "torch.compile, max-autotune-no-cudagraphs",
    REDUCED: "torch.compile, reduce-overhead",
    THIS: "this project",
    THIS_GRAPH: "this project, CUDA graph",
    TORCH_HOST: "PyTorch, host to host",
    THIS_HOST: "this project, host to host",
    TORCH_ENCODE: "PyTorch, encoder",
    THIS_ENCODE: "this project, encoder",
    TORCH_TOP: f"PyTorch, encoder and top {TOP_K}",
    THIS_TOP: f"this project, top_features of {TOP_K}",
    TORCH_WATCH: f"PyTorch, {WATCHED} columns of the encoder",
    THIS_WATCH: f"this project, watch of {WATCHED}",
}
THIS_PROJECT = (THIS, THIS_GRAPH, THIS_HOST, THIS_ENCODE, THIS_TOP, THIS_WATCH)
COMPILE_MODES = (COMPILED, TUNED, REDUCED)
ALTERNATIVES = (ORIGINAL, ORIGINAL_GRAPH, DEDUPLICATED, *COMPILE_MODES)
"""Other ways to compute all six hooks on the device."""

GRAPHED_ROWS = (1, 8, 64)
"""Numbers of rows for which CUDA graphs are captured. With more rows, launches take a negligible part of the time."""


@dataclass
class Contender:
    """A way to compute the SAE, bound to its inputs.

    Attributes:
        inputs: Sets of inputs, which are used in turn.
        run: The call that is timed, with one set of inputs.
        hooks: Names the tensors that `run` returned, so that they can be checked; None if there is nothing to check.
    """

    inputs: Sequence[Any]
    run: Callable[[Any], Any]
    hooks: Callable[[Any], Mapping[str, Tensor]] | None = None


Factories = dict[str, Callable[[], Contender]]
"""Makes each contender. One that cannot be made is left out, and the rest are measured."""


def fastest_setting(medians: Mapping[str, float]) -> str:
    """Return the faster of this project's two settings; torch.compile's fastest mode is chosen in the same way."""
    return fastest(medians, (THIS, THIS_GRAPH)) or THIS

"""Who is measured, by name, and against whom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ORIGINAL, ORIGINAL_GRAPH = "original", "original_graph"
DEDUPLICATED, COMPILED, TUNED, REDUCED = "deduplicated", "compiled", "compiled_tuned", "compiled_reduced"
THIS, THIS_GRAPH = "this", "this_graph"
TORCH_HOST, THIS_HOST = "torch_host", "this_host"
TORCH_ENCODE, THIS_ENCODE, TORCH_TOP, THIS_TOP = "torch_encode", "this_encode", "torch_top", "this_top"
ENCODE_PRODUCT, DECODE_PRODUCT, COPY = "encode_product", "decode_product", "copy"

K = 64
"""Of `top_features`."""

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
    TORCH_TOP: f"PyTorch, encoder and top {K}",
    THIS_TOP: f"this project, top_features of {K}",
}
OURS = (THIS, THIS_GRAPH, THIS_HOST, THIS_ENCODE, THIS_TOP)
COMPILES = (COMPILED, TUNED, REDUCED)
ALTERNATIVES = (ORIGINAL, ORIGINAL_GRAPH, DEDUPLICATED, *COMPILES)
"""Other ways to all six hooks on the device."""

GRAPHED_ROWS = (1, 8, 64)
"""Numbers of rows for which CUDA graphs are captured; with more, launches take no time beside the rest."""


@dataclass
class Way:
    """A contender, bound to inputs.

    Attributes:
        inputs: sets of inputs that are taken in turn.
        run: what is timed, with one set.
        hooks: makes named tensors of what `run` returned, to be compared; None where there is nothing to compare.
    """

    inputs: Sequence[Any]
    run: Callable[[Any], Any]
    hooks: Callable[[Any], Mapping[str, Tensor]] | None = None


Makers = dict[str, Callable[[], Way]]
"""How each contender is made; one that cannot be is left out, and the others go on."""


def ours(medians: Mapping[str, float]) -> str:
    """Return which of this project's two settings the others are compared with: the faster one, as of torch.compile."""
    return fastest(medians, (THIS, THIS_GRAPH)) or THIS


def fastest(medians: Mapping[str, float], names: Sequence[str]) -> str | None:
    """Return which of `names` is fastest, or None if none was measured."""
    return min((name for name in names if name in medians), key=lambda name: medians[name], default=None)

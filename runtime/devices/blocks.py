"""Large batches, a block of tokens at a time: memory beyond the result stays bounded, whatever the number of tokens."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import Array, TensorValue
from ..artifact.manifest import GraphSpec, SAEConfig, TensorSpec
from ..artifact.names import TOKENS, K

_Given = TypeVar("_Given", Array, TensorValue)

FEATURE_BYTES = 64 << 20
"""Of one tensor of features in a block, of which a graph holds a few; smaller blocks read the encoder too often."""

FEATURE_BYTES_GPU = 512 << 20
"""The same on a GPU, where it is enough to fill it, and a small part of its memory."""

FEWEST_TOKENS = 64
"""In a block; with fewer a product takes longer to read its weights than to compute."""


def default_block(cfg: SAEConfig, on_gpu: bool = False) -> int:
    """Return how many tokens of an SAE are a block: on a CPU 64 MiB of features, 682 tokens of 24576 in float32."""
    features = FEATURE_BYTES_GPU if on_gpu else FEATURE_BYTES
    return max(FEWEST_TOKENS, features // (cfg.d_sae * DTYPES[cfg.dtype].numpy.itemsize))


def token_bytes(cfg: SAEConfig) -> int:
    """Return the most memory that a token takes while a graph runs, in bytes.

    It is that of `steer`: acts_pre, acts_post before and after, and room for one more; and of the width of the input,
    recons before and after, error, output and the input itself, and room for what lies between.
    """
    return (4 * cfg.d_sae + 8 * max(cfg.d_in, cfg.d_out or 0)) * DTYPES[cfg.dtype].numpy.itemsize


def block_sizes(tokens: int, block: int) -> list[int]:
    """Return the sizes of as few blocks of at most `block` tokens as possible, as equal as possible."""
    blocks = max(1, -(-tokens // block))
    return [tokens * (i + 1) // blocks - tokens * i // blocks for i in range(blocks)]


def dimensions_of(spec: GraphSpec, feeds: Mapping[str, TensorValue]) -> dict[str, int]:
    """Return the size of every dimension of a graph's outputs that has a name, by its feeds."""
    tokens = next(iter(feeds[spec.inputs[0].name].shape), 0)
    return {TOKENS: tokens, **({K: int(np.asarray(feeds[K])[0])} if K in feeds else {})}


def part_of(spec: GraphSpec, feeds: Mapping[str, _Given], tokens: int, part: slice) -> dict[str, _Given]:
    """Return the inputs of a graph for some of the tokens; what holds for all stays as it is."""
    return {
        tensor.name: feeds[tensor.name][part] if _per_token(tensor, feeds[tensor.name], tokens) else feeds[tensor.name]
        for tensor in spec.inputs
    }


def _per_token(tensor: TensorSpec, array: TensorValue, tokens: int) -> bool:
    """Tell whether an input has a row for each token; strengths of edits may also have one for all."""
    return tensor.shape[0] == TOKENS or (isinstance(tensor.shape[0], str) and array.ndim > 1 and len(array) == tokens)

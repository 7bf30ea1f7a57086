"""Blocks: large batches run some tokens at a time, so that the memory of a call is bounded apart from its result."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, overload

import numpy as np

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import Array, TensorValue
from ..artifact.manifest import GraphSpec, SAEConfig, TensorSpec
from ..artifact.names import TOKENS, K
from ..errors import InputError

_Value = TypeVar("_Value", Array, TensorValue)

Form: TypeAlias = tuple[tuple[int, ...], str]
"""The shape and the dtype of an array."""

FEATURE_BYTES = 64 << 20
"""Size in bytes of one tensor of features in a block on a CPU.

A graph holds a few of them. Smaller blocks would read the encoder too often.
"""

FEATURE_BYTES_GPU = 512 << 20
"""Size in bytes of one tensor of features in a block on a GPU: enough to occupy it, and a small part of its memory."""

FEWEST_TOKENS = 64
"""Smallest number of tokens in a default block.

With fewer, a matrix product takes longer to read its weights than to compute.
"""


def default_block(cfg: SAEConfig, on_gpu: bool = False) -> int:
    """Return how many tokens a block of an SAE has by default.

    On a CPU that is 64 MiB of features: 682 tokens with 24576 features in float32.
    """
    features = FEATURE_BYTES_GPU if on_gpu else FEATURE_BYTES
    return max(FEWEST_TOKENS, features // (cfg.d_sae * DTYPES[cfg.dtype].numpy.itemsize))


def token_bytes(cfg: SAEConfig) -> int:
    """Return the most memory that one token takes while a graph runs, in bytes.

    The graph `steer` takes most. Of width `d_sae` it holds acts_pre, acts_post before and after the edits, and one
    intermediate tensor; of the width of the input, it holds the input, recons before and after the edits, error, output
    and three intermediate tensors.
    """
    return (4 * cfg.d_sae + 8 * max(cfg.d_in, cfg.d_out or 0)) * DTYPES[cfg.dtype].numpy.itemsize


@dataclass(frozen=True)
class Blocks(Sequence[int]):
    """The numbers of tokens of the blocks of a batch, as equal as possible; the last block is the largest.

    They are computed when they are asked for: a batch that is a broadcast view may have millions of blocks.

    Attributes:
        tokens: Number of tokens of the batch.
        blocks: Number of blocks.
    """

    tokens: int
    blocks: int

    def __len__(self) -> int:
        return self.blocks

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        block = range(self.blocks)[index]
        return self._size(block) if isinstance(block, int) else [self._size(i) for i in block]

    def __iter__(self) -> Iterator[int]:
        return map(self._size, range(self.blocks))

    def _size(self, i: int) -> int:
        return self.tokens * (i + 1) // self.blocks - self.tokens * i // self.blocks


def block_sizes(tokens: int, block: int) -> Blocks:
    """Return the fewest blocks of at most `block` tokens that hold `tokens`."""
    return Blocks(tokens, max(1, -(-tokens // block)))


def output_dimensions(spec: GraphSpec, feeds: Mapping[str, TensorValue]) -> dict[str, int]:
    """Return the sizes of the named dimensions of a graph's outputs, as its inputs determine them.

    Raises:
        InputError: `k` is not an array with one whole number, 0 or more.
    """
    tokens = next(iter(feeds[spec.inputs[0].name].shape), 0)
    if K not in feeds:
        return {TOKENS: tokens}
    k = np.asarray(feeds[K])
    if k.shape != (1,) or k.dtype.kind not in "iu" or k[0] < 0:
        raise InputError(f"k is {k!r}; it must be an array with one whole number, 0 or more.")
    return {TOKENS: tokens, K: int(k[0])}


def output_forms(spec: GraphSpec, feeds: Mapping[str, TensorValue], names: Sequence[str]) -> list[Form]:
    """Return the shape and the dtype of some of a graph's outputs, as its inputs determine them.

    Raises:
        InputError: As for `output_dimensions`.
    """
    dimensions = output_dimensions(spec, feeds)
    forms = {
        tensor.name: (tuple([dimensions[d] if isinstance(d, str) else d for d in tensor.shape]), tensor.dtype)
        for tensor in spec.outputs
        if tensor.name in names
    }
    return [forms[name] for name in names]


def output_bytes(spec: GraphSpec, feeds: Mapping[str, TensorValue], names: Sequence[str]) -> int:
    """Return the size in bytes of some of a graph's outputs.

    Raises:
        InputError: As for `output_dimensions`.
    """
    sizes = output_dimensions(spec, feeds)
    return sum(
        math.prod(sizes.get(d, 1) if isinstance(d, str) else d for d in tensor.shape)
        * DTYPES[tensor.dtype].numpy.itemsize
        for tensor in spec.outputs
        if tensor.name in names
    )


def slice_feeds(spec: GraphSpec, feeds: Mapping[str, _Value], tokens: int, part: slice) -> dict[str, _Value]:
    """Return the inputs of a graph for some of its tokens. Inputs without a row per token stay whole.

    Args:
        spec: Inputs of the graph.
        feeds: Inputs for all tokens.
        tokens: Number of all tokens.
        part: The tokens to select.
    """
    return {
        tensor.name: feeds[tensor.name][part]
        if is_per_token(tensor, feeds[tensor.name], tokens)
        else feeds[tensor.name]
        for tensor in spec.inputs
    }


def is_per_token(tensor: TensorSpec, array: TensorValue, tokens: int) -> bool:
    """Tell whether an input has a row per token. The strengths of edits may have one row for all tokens instead."""
    return tensor.shape[0] == TOKENS or (isinstance(tensor.shape[0], str) and array.ndim > 1 and len(array) == tokens)

"""Large batches, a block of tokens at a time: memory beyond the result stays bounded, whatever the number of tokens."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from .inputs import Array
from .manifest import GraphSpec, SAEConfig, TensorSpec
from .memory import ResultMemory
from .names import TOKENS, K

FEATURE_BYTES = 64 << 20
"""Of one tensor of features in a block, of which a graph holds a few; smaller blocks read the encoder too often."""

FEWEST_TOKENS = 64
"""In a block; with fewer a product takes longer to read its weights than to compute."""


def default_block(cfg: SAEConfig) -> int:
    """Return how many tokens of an SAE are a block: 64 MiB of features, 682 tokens of 24576 in float32."""
    return max(FEWEST_TOKENS, FEATURE_BYTES // (cfg.d_sae * np.dtype(cfg.dtype).itemsize))


def block_sizes(tokens: int, block: int) -> list[int]:
    """Return the sizes of as few blocks of at most `block` tokens as possible, as equal as possible."""
    blocks = max(1, -(-tokens // block))
    return [tokens * (i + 1) // blocks - tokens * i // blocks for i in range(blocks)]


def run_in_blocks(
    session: ort.InferenceSession,
    spec: GraphSpec,
    feeds: dict[str, Array],
    names: Sequence[str],
    sizes: Sequence[int],
    memory: ResultMemory,
) -> list[Array]:
    """Run a graph on one block after the other; each writes where its part of the result lies, so nothing is copied.

    Args:
        session: of the graph.
        spec: what it takes and gives.
        feeds: its inputs, for all tokens.
        names: the outputs to return, in order.
        sizes: tokens of each block.
        memory: where the results come from.
    """
    tokens = sum(sizes)
    dimensions = {TOKENS: tokens, **({K: int(feeds[K][0])} if K in feeds else {})}
    tensors = {tensor.name: tensor for tensor in spec.outputs}
    forms = [([dimensions[d] if isinstance(d, str) else d for d in tensors[name].shape], np.dtype(tensors[name].dtype))
             for name in names]  # fmt: skip
    results = dict(zip(names, memory.arrays(forms), strict=True))
    binding, start = session.io_binding(), 0
    for size in sizes:
        block = slice(start, start + size)
        parts = part_of(spec, feeds, tokens, block)
        for name, array in parts.items():
            parts[name] = np.ascontiguousarray(array)
            binding.bind_cpu_input(name, parts[name])
        for name, result in results.items():
            part = result[block]
            binding.bind_output(name, "cpu", 0, result.dtype, part.shape, part.ctypes.data)
        session.run_with_iobinding(binding)
        start += size
    return list(results.values())


def part_of(spec: GraphSpec, feeds: dict[str, Array], tokens: int, part: slice) -> dict[str, Array]:
    """Return the inputs of a graph for some of the tokens; what holds for all stays as it is."""
    return {
        tensor.name: feeds[tensor.name][part] if _per_token(tensor, feeds[tensor.name], tokens) else feeds[tensor.name]
        for tensor in spec.inputs
    }


def _per_token(tensor: TensorSpec, array: Array, tokens: int) -> bool:
    """Tell whether an input has a row for each token; strengths of edits may also have one for all."""
    return tensor.shape[0] == TOKENS or (isinstance(tensor.shape[0], str) and array.ndim > 1 and len(array) == tokens)

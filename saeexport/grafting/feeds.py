"""Makes the feeds on which a host is proved: a padded batch of sequences of different lengths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from runtime.arrays.tensor import Array
from runtime.errors import GraftError
from runtime.hosts.names import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, TOKEN_TYPE_IDS

from .host import Host

LENGTHS = (24, 17, 11, 6)
"""Lengths of the sequences, if there is no text."""

TEXTS = (
    "She plays the violin in a small orchestra, and on Sundays she teaches children.",
    "The ship left the harbor at dawn.",
    "Prices rose by four percent in March, the bank said.",
    "Why do cats always land on their feet?",
)

SMALLEST_VOCABULARY = 16


def default_feeds(host: Host, tokenizer: "Path | None" = None) -> tuple[dict[str, Array], str]:
    """Return feeds for a host, and what they are: "sentences", or "synthetic" tokens if there is no tokenizer.

    Every sequence is padded on the right. A host without an attention mask gets sequences of one length. Past keys and
    values are empty.

    Args:
        host: The host.
        tokenizer: File `tokenizer.json` of the host's tokenizer.

    Raises:
        GraftError: The host has an input that cannot be made from tokens.
    """
    inputs = {value.name: value for value in host.graph.inputs if not value.is_initializer()}
    if INPUT_IDS not in inputs:
        raise GraftError(
            f"The host {host.path} has the inputs {', '.join(map(str, inputs))}, and none called {INPUT_IDS}. Pass "
            "feeds: --reference FILE."
        )
    batch, length = _fixed_sizes(inputs[INPUT_IDS])
    if tokenizer is None:
        sequences, source = _random_tokens(host, batch or len(LENGTHS)), "synthetic"
    else:
        sequences, source = _tokens_of_texts(tokenizer, batch or len(TEXTS)), "sentences"
    if length is not None:
        sequences = [ids[:length] for ids in sequences]
    width = length or max(map(len, sequences))
    if ATTENTION_MASK not in inputs and length is None:
        width = min(map(len, sequences))
        sequences = [ids[:width] for ids in sequences]
    mask = np.array([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    ids = np.array([[*ids, *[0] * (width - len(ids))] for ids in sequences])
    known = {
        INPUT_IDS: ids,
        ATTENTION_MASK: mask,
        TOKEN_TYPE_IDS: np.zeros_like(ids),
        POSITION_IDS: np.maximum(np.cumsum(mask, axis=1) - 1, 0),
    }
    pasts = {past for past, _ in host.cache}
    feeds = {}
    for name, value in inputs.items():
        assert value.dtype is not None
        if name in pasts:
            feeds[name] = _empty_cache(value, len(ids))
        elif name in known:
            feeds[str(name)] = known[name].astype(value.dtype.numpy())
        else:
            raise GraftError(
                f"The host {host.path} has the input {name}, {value.dtype} {value.shape}, which cannot be made from "
                "tokens. Pass feeds: --reference FILE."
            )
    return feeds, source


def select_sequences(host: Host, feeds: Mapping[str, Array], keep: Array) -> dict[str, Array]:
    """Return the feeds of some of the sequences.

    Args:
        host: The host.
        feeds: Inputs of the host.
        keep: Which sequences to keep, `(batch,)` bool.

    Raises:
        GraftError: The host takes batches of one size only.
    """
    ids = next(value for value in host.graph.inputs if value.name == INPUT_IDS)
    if _fixed_sizes(ids)[0] is not None:
        raise GraftError(
            f"The host {host.path} takes batches of {len(keep)} sequences only, and on {len(keep) - keep.sum()} of "
            "them a feature is at its threshold but for rounding. Pass other feeds: --reference FILE."
        )
    return {name: array[keep] if array.shape[:1] == keep.shape else array for name, array in feeds.items()}


def _empty_cache(value: ir.Value, batch: int) -> Array:
    """Return an array in which the first dimension without a size is the batch, and every other has no token."""
    sizes: list[int] = []
    for size in value.shape or ():
        sizes.append(size if isinstance(size, int) else (0 if sizes else batch))
    assert value.dtype is not None
    return np.zeros(sizes, value.dtype.numpy())


def _fixed_sizes(ids: ir.Value) -> tuple[int | None, int | None]:
    sizes = [size if isinstance(size, int) else None for size in ids.shape or ()]
    if len(sizes) != 2:
        raise GraftError(f"{INPUT_IDS} of the host has shape {ids.shape}; it must be (batch, positions).")
    return sizes[0], sizes[1]


def _random_tokens(host: Host, batch: int) -> list[list[int]]:
    draws = np.random.default_rng(0)
    vocabulary = _vocabulary(host)
    lengths = [LENGTHS[i % len(LENGTHS)] for i in range(batch)]
    return [draws.integers(1, vocabulary, length).tolist() for length in lengths]


def _vocabulary(host: Host) -> int:
    """Return the number of tokens, the rows of the table in which the host looks up its ids."""
    ids = next(value for value in host.graph.inputs if value.name == INPUT_IDS)
    todo, tables = [ids], []
    seen = set()
    while todo:
        for use in todo.pop().uses():
            if use.node.op_type == "Gather" and use.idx == 1 and use.node.inputs[0] is not None:
                shape = use.node.inputs[0].shape
                if shape is not None and len(shape) == 2 and isinstance(shape[0], int):
                    tables.append(shape[0])
            elif use.node.op_type in ("Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze") and use.node not in seen:
                seen.add(use.node)
                todo += use.node.outputs
    return min(tables, default=SMALLEST_VOCABULARY)


def _tokens_of_texts(tokenizer: Path, batch: int) -> list[list[int]]:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise GraftError("tokenizer.json is read with the package tokenizers: pip install tokenizers") from None
    try:
        read: Any = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # its exceptions are plain ones
        raise GraftError(f"{tokenizer} is not a tokenizer of Hugging Face's tokenizers: {error}") from None
    read.no_padding()
    return [read.encode(TEXTS[i % len(TEXTS)]).ids for i in range(batch)]

"""Texts as vectors: the dense embeddings of the language model, and the features of an SAE pooled over the tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime import HostSession

Rows = NDArray[np.float32]
BATCH = 32
MAX_TOKENS = 128


@dataclass(frozen=True)
class Vectors:
    """One vector of each kind for every text.

    Attributes:
        dense: Mean of the last layer over the tokens, scaled to length 1, `(texts, d_model)`.
        features: Largest activation of each feature over the words of the text, `(texts, d_sae)`.
    """

    dense: Rows
    features: Rows


def embed(host: HostSession, texts: list[str]) -> Vectors:
    """Return the vectors of texts. Texts of similar length share a batch, to save padding."""
    (hook,) = host.hook_names
    parts: dict[int, tuple[Rows, Rows]] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        feeds = host.tokenize([texts[i] for i in chosen], max_length=MAX_TOKENS)
        output, cache = host.run_with_cache(feeds, hook)  # one pass for both kinds of vectors
        acts = host.sae(hook).encode(cache[hook])
        dense = pool_dense(output["last_hidden_state"], feeds["attention_mask"])
        parts |= zip(chosen, zip(dense, pool_features(acts, feeds["attention_mask"]), strict=True), strict=True)
    dense, features = zip(*(parts[i] for i in range(len(texts))), strict=True)
    return Vectors(np.stack(dense), np.stack(features))


def pool_dense(hidden: Rows, mask: NDArray[np.int64]) -> Rows:
    """Return the sentence embedding of all-MiniLM-L6-v2: the mean over the tokens, scaled to length 1.

    Args:
        hidden: The last layer, `(texts, tokens, d_model)`.
        mask: 1 for a token and 0 for padding, `(texts, tokens)`.
    """
    return to_length_1((hidden * mask[..., None]).sum(axis=1))


def pool_features(acts: Rows, mask: NDArray[np.int64]) -> Rows:
    """Return the largest activation of each feature over the words of each text.

    `[CLS]` and `[SEP]` are left out: their features are the same in every text.

    Args:
        acts: Activations of the features, `(texts, tokens, d_sae)`.
        mask: 1 for a token and 0 for padding, which is on the right, `(texts, tokens)`.
    """
    words = mask != 0
    words[np.arange(len(words)), words.sum(axis=1) - 1] = False  # [SEP]
    words[:, 0] = False  # [CLS]
    return np.where(words[..., None], acts, 0).max(axis=1)


def keep(features: Rows, kept: int) -> Rows:
    """Return the `kept` strongest features of each text; the others become 0.

    Args:
        features: Pooled activations, `(texts, d_sae)`.
        kept: Number of features to keep, at most d_sae.
    """
    weakest = np.partition(features, -kept, axis=1)[:, -kept, None]
    return np.where(features >= weakest, features, 0)


def weigh(features: Rows) -> Rows:
    """Return the square roots of the features of each text, scaled to length 1.

    The square root keeps one very strong feature from deciding alone. The length of 1 keeps long texts, in which more
    features are on, from being found for every query.
    """
    return to_length_1(np.sqrt(features))


def to_length_1(rows: Rows) -> Rows:
    """Return rows divided by their lengths; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)

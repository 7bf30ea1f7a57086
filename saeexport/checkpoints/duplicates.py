"""Counts features that have the same weights: their preactivations tie, and a top-k SAE keeps any of them."""

import hashlib

from torch import Tensor

from ..original.hooked_sae import HookedSAE
from ..original.running import to_bits

BLOCK_ELEMENTS = 1 << 21
"""Number of elements that are copied at a time; a hash of 16 bytes is kept of each feature."""


def note_duplicates(sae: HookedSAE) -> list[str]:
    """Return sentences about features with the same encoder weights, or with the same decoder weights."""
    encoders, decoders = count_repeated(sae.W_enc.T), count_repeated(sae.W_dec)
    notes = []
    if encoders:
        notes.append(f"Features with the encoder weights of another feature: {encoders:,}.")
    if encoders and hasattr(sae.cfg, "k"):
        notes.append("Those with the same bias, too, always tie, and top-k may keep any of them.")
    if decoders:
        notes.append(f"Features with the decoder weights of another feature: {decoders:,}.")
    return notes


def count_repeated(matrix: Tensor) -> int:
    """Return the number of rows of a matrix that equal an earlier row."""
    seen: set[bytes] = set()
    step = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        block = (matrix[start : start + step].detach() + 0).contiguous()  # -0 becomes 0
        seen.update(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in to_bits(block))
    return len(matrix) - len(seen)

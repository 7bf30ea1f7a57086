"""What a report says about the features of an SAE: measured on the golden batch, and its decoder norms."""

from dataclasses import dataclass

import numpy as np

from ...arrays.dtypes import widened
from ...arrays.tensor import Array
from ...artifact.folder import Artifact
from ...artifact.names import HOOK_ACTS_POST, HOOK_INPUT, HOOK_RECONS
from ...artifact.tensorfile import tensors_in
from ...parity.fidelity import explained_variance
from ...parity.reference import Reference
from ...session.session import SAESession
from ..sources import as_input

DECODER = "W_dec"
ROUNDED = 1e-2
"""Relative difference of decoder norms below which they are equal: bfloat16 rounds each weight by up to 0.4 %."""

ROWS = 4096
"""Rows of the decoder that are read at a time."""


@dataclass(frozen=True)
class Measured:
    """Features of an SAE on the golden batch, as this machine computes them.

    Attributes:
        l0: The number of features that are on for each token, `(tokens,)`.
        frequency: The number of tokens for which each feature is on, `(d_sae,)`.
        largest: The activation of each feature with the largest absolute value, `(d_sae,)`.
        mean: The mean of each feature's activations over the tokens for which it is on, `(d_sae,)`; 0 if there is none.
        left_out: Number of tokens with activations that are not finite, which are left out.
        explained: Fraction of the variance that the reconstruction explains; None if it is not known.
        decoder_norms: Norm of each feature's row of the decoder, `(d_sae,)`; None if there is no such matrix.
    """

    l0: Array
    frequency: Array
    largest: Array
    mean: Array
    left_out: int
    explained: float | None
    decoder_norms: Array | None

    @property
    def equal_norms(self) -> bool:
        """Whether every row of the decoder has the same norm, but for rounding."""
        norms = self.decoder_norms
        return norms is not None and float(norms.max() - norms.min()) <= ROUNDED * float(norms.max())

    @property
    def tokens(self) -> int:
        """Number of tokens that were measured."""
        return len(self.l0)

    def strongest(self, most: int) -> list[int]:
        """Return the ids of the features with the largest absolute activations, at most `most`, the strongest first."""
        order = np.argsort(-np.abs(self.largest), kind="stable")[:most]
        return [int(j) for j in order if self.frequency[j]]


def measure(session: SAESession, reference: Reference) -> Measured:
    """Return what is measured on the inputs of a reference.

    Args:
        session: The session of the artifact.
        reference: The golden batch.
    """
    x, target = (
        None if array is None else as_input(array, session.cfg.dtype, "the golden batch")
        for array in (reference.original[HOOK_INPUT], reference.target)
    )
    tensors = {
        name: widened(np.asarray(tensor))
        for name, tensor in session.compute(x, [HOOK_INPUT, HOOK_ACTS_POST, HOOK_RECONS], target).items()
    }
    acts = tensors[HOOK_ACTS_POST]
    finite = np.isfinite(acts).all(axis=-1)
    acts = acts[finite]
    on = acts != 0
    frequency = on.sum(axis=0)
    strongest = np.abs(acts).argmax(axis=0)[None] if len(acts) else np.zeros((0, session.cfg.d_sae), np.int64)
    largest = np.take_along_axis(acts, strongest, axis=0).sum(axis=0)
    return Measured(
        l0=on.sum(axis=-1),
        frequency=frequency,
        largest=largest,
        mean=acts.sum(axis=0) / np.maximum(frequency, 1),
        left_out=int((~finite).sum()),
        explained=explained_variance({**reference.original, **tensors}, reference.target) if finite.all() else None,
        decoder_norms=decoder_norms(session.artifact),
    )


def decoder_norms(artifact: Artifact) -> Array | None:
    """Return the norm of each feature's row of the decoder, `(d_sae,)`, in float64.

    Rows of int8 weights are blocks with a scale each. A custom class may keep its decoder under another name; then the
    result is None.
    """
    d_sae = artifact.manifest.sae.d_sae
    with artifact.open(artifact.manifest.weights) as file:
        tensors = tensors_in(file.map(), file.path)
        rows, scale = tensors.get(DECODER), None
        if rows is None:
            rows, scale = tensors.get(f"{DECODER}.int8"), tensors.get(f"{DECODER}.scale")
        if rows is None or rows.ndim != 2 or len(rows) % d_sae:
            return None
        squares = np.empty(len(rows))
        for start in range(0, len(rows), ROWS):
            block = rows[start : start + ROWS].astype(np.float64)
            squares[start : start + ROWS] = (block * block).sum(axis=1)
    if scale is not None:
        squares *= scale.astype(np.float64) ** 2
    return np.sqrt(squares.reshape(d_sae, -1).sum(axis=1))

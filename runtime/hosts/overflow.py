"""Warns of activations of a host that an SAE in float16 cannot hold: they become infinite when the SAE reads them."""

import warnings

import numpy as np

from ..arrays.dtypes import FLOAT16
from ..arrays.tensor import Array
from ..artifact.folder import Artifact
from .manifest import GraftedSAE
from .names import activation_name

LARGEST = {FLOAT16: 65504.0}
"""The largest value of the dtypes whose range is smaller than that of float32."""


def tokens_too_large(x: Array, dtype: str, tokens: Array) -> int:
    """Return how many tokens have a value that becomes infinite in a dtype.

    Args:
        x: Activations, `(*tokens.shape, ...)`.
        dtype: Name of the dtype.
        tokens: Which tokens count, bool.
    """
    if dtype not in LARGEST or x.dtype.name == dtype or x.shape[: tokens.ndim] != tokens.shape:
        return 0
    rows = np.abs(x[tokens].reshape(int(tokens.sum()), -1))
    return int((rows > LARGEST[dtype]).any(axis=1).sum())


def narrow_reads(grafted: GraftedSAE, sae: Artifact) -> list[tuple[str, str]]:
    """Return the hooks that an SAE reads in a dtype of a smaller range than the host's, and the outputs that hold them.

    Args:
        grafted: The place of the SAE.
        sae: The SAE.
    """
    cfg = sae.manifest.sae
    places = grafted.places if cfg.takes_target else (grafted,)
    return [
        (place.hook, activation_name(grafted.hook, place.hook))
        for place in places
        if cfg.dtype in LARGEST and place.dtype != cfg.dtype
    ]


def warn_of_overflow(hook: str, dtype: str, count: int, tokens: Array) -> None:
    """Warn that what the SAE at a hook computes for `count` of the tokens is not finite, if there are any."""
    if count:
        warnings.warn(
            f"{hook}: the SAE there is in {dtype}, which ends at {LARGEST[dtype]:.0f}, and what it computes for "
            f"{count} of {int(tokens.sum())} tokens is not finite. Export the SAE in bfloat16 or float32, and graft it "
            "again.",
            RuntimeWarning,
            stacklevel=2,
        )

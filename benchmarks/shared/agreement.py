"""The check that contenders compute the same values, made before any of them is timed."""

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""The largest norm of a difference, divided by the norm of the original's hook, that is rounding in float32."""

MOST_CHECKED = 512
"""Number of rows that are compared at most."""


class DisagreementError(Exception):
    """A contender computes other values than the original."""


def check_agreement(
    title: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    tolerance: float = TOLERANCE,
) -> float:
    """Return the largest relative difference of a contender's tensors from the original's.

    Args:
        title: Name of the contender, for the error message.
        found: What the contender computed.
        expected: The original's tensors in float32. Each of them must be in `found`.
        dtype: The dtype that the contender's tensors must have.
        tolerance: The largest norm of a difference, divided by the norm of the expected tensor.

    Raises:
        DisagreementError: A tensor is missing, has another shape or dtype, or differs by more than the tolerance.
    """
    if missing := set(expected) - set(found):
        raise DisagreementError(f"{title} does not return {', '.join(sorted(missing))}.")
    worst = 0.0
    for hook, truth in expected.items():
        y = found[hook]
        if (y.shape, y.dtype) != (truth.shape, dtype):
            raise DisagreementError(
                f"{title}: {hook} is {tuple(y.shape)} {y.dtype}; it must be {tuple(truth.shape)} {dtype}."
            )
        difference, norm = (
            torch.linalg.vector_norm(z, dtype=torch.float64).item()
            for z in (y.to(truth.device, torch.float32) - truth, truth)
        )
        error = difference / norm if norm else (0.0 if difference == 0 else float("inf"))
        if not error <= tolerance:  # also if it is NaN
            raise DisagreementError(
                f"{title}: {hook} differs from the original's by {error:.1e} of its norm; at most {tolerance:.0e} "
                "can be rounding."
            )
        worst = max(worst, error)
    return worst


def row_stride(rows: int) -> int:
    """Return n such that every n-th of `rows` rows makes at most `MOST_CHECKED` rows; only these are compared."""
    return -(-rows // MOST_CHECKED)

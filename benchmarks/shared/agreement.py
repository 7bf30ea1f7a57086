"""Whether contenders compute the same, which is asked before any of them is timed."""

from collections.abc import Collection, Mapping

import numpy as np

from runtime.arrays.tensor import Array

CLOSE = 1e-4
"""The norm of a difference, over the norm of the original's hook, up to which two results are the same."""


class DisagreementError(Exception):
    """A contender computes something else than the original."""


def agree(name: str, outputs: Mapping[str, Array], reference: Mapping[str, Array], hooks: Collection[str]) -> float:
    """Return the largest relative difference of the `hooks` of a contender from the original's.

    Raises:
        DisagreementError: a hook is missing, has another shape or dtype, or differs by more than `CLOSE`.
    """
    if missing := set(hooks) - set(outputs):
        raise DisagreementError(f"{name} does not return {', '.join(sorted(missing))}.")
    worst = 0.0
    for hook in hooks:
        y, expected = outputs[hook], reference[hook]
        if (y.shape, y.dtype) != (expected.shape, expected.dtype):
            raise DisagreementError(f"{name}: {hook} is {y.shape} {y.dtype}, the original's {expected.shape} "
                               f"{expected.dtype}.")  # fmt: skip
        difference, norm = (float(np.linalg.norm(z.astype(np.float64))) for z in (y - expected, expected))
        error = difference / norm if norm else (0.0 if difference == 0 else np.inf)
        if not error <= CLOSE:  # NaN is not, either
            raise DisagreementError(f"{name}: {hook} differs from the original's by {error:.1e} of its norm; up to "
                               f"{CLOSE:.0e} would be rounding.")  # fmt: skip
        worst = max(worst, error)
    return worst

"""The rule for budgets: how large the errors of an artifact may be, given the errors of the original.

    budget = FACTOR * error of the original + FLOOR[dtype] * number of roundings of the result

`saeexport` writes the budgets that this rule gives, and a reader computes them again from the recorded errors and
refuses a manifest with other budgets. FACTOR and FLOOR are powers of two. The sum is the only operation that rounds, so
that both get the same float64.

`runtime.parity.reference` says how errors are measured.
"""

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from .manifest import Errors
from .names import HOOK_ERROR, HOOK_OUTPUT, HOOK_RECONS

FACTOR = 4.0
"""Largest ratio of the artifact's error to the error of the original. Two correct programs that add the same
products in different orders have different errors. The largest ratio that `python -m benchmarks.losses.parity`
measures over sizes, sparsities, architectures and numbers of tokens is 1.7 (benchmarks/results), 1.1 in half precision,
and 2.3 in its columns. The rest is for processors and GPUs that add in yet another order."""

MIN_COLUMN_TOKENS = 32
"""Smallest number of tokens with which columns are judged, in half precision. A column is a feature, or a dimension of
the reconstruction, over all tokens of the batch. In a few tokens the original may be exact by chance."""

FLOOR = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}
"""Error of one correct rounding, by dtype: half a unit in the last place of a significand of 24, 11 or 8 bits. It is
allowed where the original happens to be exact. A dtype that is not listed cannot be judged: float64 is the truth's."""

MOST_OWN_ERROR = {FLOAT32: 1e-3, FLOAT16: 2.0**-7, BFLOAT16: 2.0**-4}
"""Largest token error that the original itself may have, by dtype. In float32 it is 1e-7 to 1e-6. In half precision it
is a few roundings of 2^-11 or 2^-8; more than 16 of them are not explained by rounding and leave little to prove."""

PROVES_NOTHING = 1.0
"""Token error of a tensor that differs from the truth by as much as the values it is computed from. A budget must be
smaller. This bounds the budgets for an intervention and for TF32, where no token of the original is left out."""

MARGIN = 2.0
"""Largest ratio of the errors of int8 weights on another machine to the errors measured at export. Other kernels round
activations in other blocks."""

MOST_LOST = 0.05
"""Largest token error of a stage with int8 weights, given the original's values before it, with which an export still
counts as the same SAE. Rounding to 8 bits costs about 0.01. A wrong graph would cost more, and must not become its own
budget."""


def count_roundings(hook: str, steered: bool = False) -> int:
    """Return the number of roundings of the result at a computed hook.

    The error and the output have two: that of `input - recons`, and that of `recons` before it or of the sum after it.
    Adding the update of an intervention to the reconstruction is one more.
    """
    return 1 + (hook in (HOOK_ERROR, HOOK_OUTPUT)) + (steered and hook in (HOOK_RECONS, HOOK_OUTPUT))


def budget_of(original: Errors, hook: str, dtype: str, steered: bool = False) -> Errors:
    """Return the budget of a hook.

    Args:
        original: Errors of the original at the hook; with an intervention the larger ones of its two passes, with the
            intervention and without.
        hook: Name of a computed hook.
        dtype: Dtype of the SAE.
        steered: Whether it is the budget under an intervention.
    """
    floor = FLOOR[dtype] * count_roundings(hook, steered)
    return Errors(FACTOR * original.token + floor, FACTOR * original.element + floor)


def fidelity_budget(original: Errors, artifact: Errors) -> Errors:
    """Return the budget of a hook of an artifact of lower precision, from the errors measured at export."""
    return Errors(MARGIN * (artifact.token + original.token), MARGIN * (artifact.element + original.element))


def larger_errors(a: Errors, b: Errors) -> Errors:
    """Return the larger one of two token errors, and of two element errors."""
    return Errors(max(a.token, b.token), max(a.element, b.element))

"""The rule for the outputs of a grafted host: how an error is measured, and how large it may be.

    error  = max over tokens of ||y - reference|| / ||reference||
    budget = FACTOR * own + FLOOR[dtype] * ROUNDINGS, and with SAEs attached that round more than the host
           + FLOOR[dtype of the SAEs] * ROUNDINGS_OF_SAE

`own` is the error of the host itself in the same condition, without the graph that is judged: the larger one of its
distance from PyTorch, if it was compared with PyTorch, and of that between its runs with and without ONNX Runtime's
optimisations. They are correct programs of the same model, so that their distance says how much rounding matters in it.
Masked tokens do not count.
"""

import math
from collections.abc import Collection

import numpy as np

from ..arrays.dtypes import BFLOAT16, widened
from ..arrays.tensor import Array
from ..artifact.budgets import FACTOR, FLOOR
from ..artifact.manifest import Errors

ROUNDINGS = 16
"""Roundings that are allowed in addition to `FACTOR` times the own error, which may be 0 by chance. The rounding errors
of the few hundred operators of a host add up like random numbers: 16 = sqrt(256)."""

ROUNDINGS_OF_SAE = 4
"""Roundings of an SAE whose dtype rounds more than the host's. It has about 16 operators, and 4 = sqrt(16)."""

PROVES = 10.0
"""Number of budgets by which attaching an SAE has to move some output. A splice that does nothing moves it by less than
one; SAEs that were trained on the activation move it by 10^3 budgets and more."""


PROVES_IN_BFLOAT16 = 4.0
"""The same with an SAE in bfloat16, whose roundings alone are 1.6 % of a token's norm. An SAE that explains 90 % of the
variance moves an output by 20 to 30 %."""


def needed_move(sae_dtypes: Collection[str]) -> float:
    """Return by how many budgets attaching an SAE, or an edit, has to move some output.

    Args:
        sae_dtypes: Dtypes of the attached SAEs.
    """
    return PROVES_IN_BFLOAT16 if BFLOAT16 in sae_dtypes else PROVES


def host_budget(own: float, dtype: str, sae_dtype: str = "") -> float:
    """Return the largest error that an output or activation of a host may have.

    Args:
        own: Error of the host itself.
        dtype: Dtype of the output; one without a unit of rounding, such as int64, has the budget 0.
        sae_dtype: Dtype of the attached SAEs that rounds most; "" if none is attached.
    """
    floor, of_sae = FLOOR.get(dtype, 0.0), FLOOR.get(sae_dtype, 0.0)
    return FACTOR * own + floor * ROUNDINGS + (of_sae * ROUNDINGS_OF_SAE if of_sae > floor else 0.0)


def host_errors(y: Array, reference: Array, mask: Array) -> Errors:
    """Return the error of an output, and the largest difference of one element relative to the size of its token.

    Args:
        y: The output.
        reference: What it is compared with, of the same shape.
        mask: Which tokens count, `(batch, sequence)` bool. An output without these dimensions has a row for each
            sequence, or for the batch.

    Returns:
        The errors. They are infinite if the shapes differ, or if a value is not finite.
    """
    if y.shape != reference.shape:
        return Errors(math.inf, math.inf)
    found, wanted = (_rows(array, mask) for array in (y, reference))
    size = np.linalg.norm(wanted, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        difference = np.abs(found - wanted)
        relative = np.where(difference == 0, 0.0, difference / size)  # where the reference is 0, only 0 has no error
    token = np.linalg.norm(relative, axis=1).max(initial=0.0)
    element = relative.max(initial=0.0) * math.sqrt(wanted.shape[1])
    return Errors(_or_infinite(float(token)), _or_infinite(float(element)))


def host_error(y: Array, reference: Array, mask: Array) -> float:
    """Return the error of an output; see the module, and `host_errors` for the arguments."""
    return host_errors(y, reference, mask).token


def as_errors(budget: float, y: Array, mask: Array) -> Errors:
    """Return a budget with the largest error of one element that it allows."""
    return Errors(budget, budget * math.sqrt(_rows(y, mask).shape[1]))


def _rows(array: Array, mask: Array) -> Array:
    """Return a float64 row for each token that counts."""
    array = widened(array)
    rows = array[mask] if array.shape[: mask.ndim] == mask.shape else array
    return rows.reshape(len(rows) if rows.ndim else 1, -1).astype(np.float64)


def _or_infinite(error: float) -> float:
    return error if math.isfinite(error) else math.inf

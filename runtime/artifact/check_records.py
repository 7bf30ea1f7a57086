"""Checks the records of a manifest: errors in their ranges, and budgets as the rule gives them."""

import math
from collections.abc import Mapping
from typing import Any

from ..arrays.dtypes import FLOAT32
from .budgets import (
    FACTOR,
    MARGIN,
    MOST_LOST,
    MOST_OWN_ERROR,
    PROVES_NOTHING,
    budget_of,
    fidelity_budget,
    larger_errors,
)
from .manifest import INT8, Errors, Features, Fidelity, HookBudget, HookParity, ParityRecord, SAEConfig
from .names import FEATURE_HOOKS, HOOK_ACTS_PRE
from .requirement import require

ROUNDING = 1e-9
"""Relative difference of two sums of float64 that are equal but for rounding."""

KINDS = ("token", "element")


def check_parity(sae: SAEConfig, parity: ParityRecord) -> None:
    """Check the parity record: its errors are possible, and its budgets are those of the rule.

    Raises:
        ManifestError: A value is outside of its range; the message names the key.
    """
    _check_tokens("parity", parity.device, parity.tokens, parity.left_out)
    records: dict[str, tuple[Mapping[str, HookParity | HookBudget], Mapping[str, HookParity | HookBudget], bool]] = {
        "hooks": (parity.hooks, parity.hooks, True),
        "steered": (parity.steered, parity.hooks, True),
        "tf32": (parity.tf32, parity.tf32, sae.dtype == FLOAT32),
        "tf32_steered": (parity.tf32_steered, parity.tf32, sae.dtype == FLOAT32),
    }
    for name, (hooks, _, wanted) in records.items():
        _check_names(f"parity: {name}", hooks, sae, wanted)
    for name, (hooks, clean, _) in records.items():
        steered = hooks is not clean
        for hook, record in hooks.items():
            where = f"parity: {name}[{hook!r}]"
            _check_errors(f"{where}: original", record.original, hook, sae)
            largest = larger_errors(record.original, clean[hook].original)
            budget = budget_of(largest, hook, sae.dtype, steered)
            _check_budget(where, record.budget, budget, f"{FACTOR:g} times the error of the original and its roundings")
            require(
                record.budget.token < PROVES_NOTHING, f"{where}: budget: token", record.budget.token,
                f"below {PROVES_NOTHING:g}, an error as large as the values themselves",
            )  # fmt: skip
            if isinstance(record, HookParity):
                _check_errors(f"{where}: artifact", record.artifact, hook, sae)
                _check_at_most(f"{where}: artifact", record.artifact, record.budget, "its budget")
    _check_own_errors("parity", parity.hooks, MOST_OWN_ERROR[sae.dtype])


def check_fidelity(sae: SAEConfig, weights_dtype: str, fidelity: Fidelity) -> None:
    """Check the fidelity record: its errors and fractions are possible, and its budgets are those of the rule.

    Raises:
        ManifestError: A value is outside of its range; the message names the key.
    """
    _check_tokens("fidelity", fidelity.device, fidelity.tokens, fidelity.left_out)
    for name, hooks, wanted in (
        ("hooks", fidelity.hooks, True),
        ("steered", fidelity.steered, weights_dtype == INT8),
    ):
        _check_names(f"fidelity: {name}", hooks, sae, wanted)
        for hook, record in hooks.items():
            where = f"fidelity: {name}[{hook!r}]"
            _check_errors(f"{where}: original", record.original, hook, sae)
            _check_errors(f"{where}: artifact", record.artifact, hook, sae)
            budget = fidelity_budget(record.original, record.artifact)
            _check_budget(where, record.budget, budget, f"{MARGIN:g} times the errors of the artifact and the original")
            if weights_dtype == INT8 and hook == HOOK_ACTS_PRE:
                lost = record.artifact.token
                require(lost <= MOST_LOST, f"{where}: artifact: token", lost, f"at most {MOST_LOST:g}")
    _check_own_errors("fidelity", fidelity.hooks, MOST_OWN_ERROR[FLOAT32])
    _check_features(fidelity.features, sae.d_sae)
    before, now = fidelity.explained_original, fidelity.explained
    require((before is None) == (now is None), "fidelity: explained", now, "null exactly if explained_original is")
    for name, fraction in (("explained_original", before), ("explained", now)):
        require(fraction is None or fraction <= 1, f"fidelity: {name}", fraction, "at most 1")


def _check_tokens(where: str, device: str, tokens: int, left_out: int) -> None:
    require(device != "", f"{where}: device", device, "the name of a device")
    require(tokens >= 1, f"{where}: tokens", tokens, "at least 1")
    require(left_out >= 0, f"{where}: left_out", left_out, "at least 0")


def _check_names(where: str, hooks: Mapping[str, Any], sae: SAEConfig, wanted: bool) -> None:
    """Check that there is a record of every computed hook, or of none."""
    expected = sae.hooks[1:] if wanted else ()
    found = ", ".join(hooks) or "empty"
    require(set(hooks) == set(expected), where, found, f"for the hooks {', '.join(expected)}" if expected else "empty")


def _check_errors(where: str, errors: Errors, hook: str, sae: SAEConfig) -> None:
    """Check that two errors can belong to one tensor: the largest element of a token is at least its mean square."""
    require(errors.token >= 0, f"{where}: token", errors.token, "at least 0")
    width = sae.d_sae if hook in FEATURE_HOOKS else math.prod(sae.output_shape)
    most = errors.token * math.sqrt(width)
    require(
        errors.token * (1 - ROUNDING) <= errors.element <= most * (1 + ROUNDING), f"{where}: element", errors.element,
        f"from {errors.token!r}, the token error, to {most!r}, that times the square root of the width {width}",
    )  # fmt: skip


def _check_budget(where: str, budget: Errors, expected: Errors, rule: str) -> None:
    """Check that a budget is the one that the rule gives, bit for bit."""
    for kind in KINDS:
        found, wanted = getattr(budget, kind), getattr(expected, kind)
        require(found == wanted, f"{where}: budget: {kind}", found, f"{wanted!r}, {rule}")


def _check_at_most(where: str, errors: Errors, most: Errors, what: str) -> None:
    for kind in KINDS:
        error, limit = getattr(errors, kind), getattr(most, kind)
        require(error <= limit, f"{where}: {kind}", error, f"at most {limit!r}, {what}")


def _check_own_errors(where: str, hooks: Mapping[str, HookParity], most: float) -> None:
    """Check that the original was accurate on the tokens of the proof: the exporter leaves out all others."""
    for hook, record in hooks.items():
        own = record.original.token
        require(own <= most, f"{where}: hooks[{hook!r}]: original: token", own, f"at most {most:g}")


def _check_features(features: Features, d_sae: int) -> None:
    require(0 <= features.kept <= 1, "fidelity: features: kept", features.kept, "from 0 to 1")
    require(features.gained >= 0, "fidelity: features: gained", features.gained, "at least 0")
    for name in ("l0_original", "l0"):
        value = getattr(features, name)
        require(0 <= value <= d_sae, f"fidelity: features: {name}", value, f"from 0 to d_sae = {d_sae}")
    expected = features.l0_original * (features.kept + features.gained)
    require(
        features.l0_original == 0 or math.isclose(features.l0, expected, rel_tol=ROUNDING, abs_tol=ROUNDING),
        "fidelity: features: l0", features.l0, f"l0_original * (kept + gained) = {expected!r}",
    )  # fmt: skip

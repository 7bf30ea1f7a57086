"""Fidelity: what an artifact of lower precision loses against the float32 original.

Fidelity is measured, and it is not parity. With int8 weights there is no parity, and a verification compares the
artifact with its recorded fidelity. In half precision there is parity with the original in that dtype; the fidelity is
recorded for the reader of the manifest.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..arrays.tensor import Array
from ..artifact.budgets import fidelity_budget
from ..artifact.manifest import Errors, Features, Fidelity, HookParity
from ..artifact.names import HOOK_ERROR, HOOK_INPUT, HOOK_RECONS
from .reference import COMPUTED_HOOKS, Hooks, SteeredReference


def without_budgets(steered: SteeredReference) -> SteeredReference:
    """Return a reference with unlimited budgets, which judges everything except the size of errors."""
    unlimited = dict.fromkeys(COMPUTED_HOOKS, Errors(math.inf, math.inf))
    clean = dataclasses.replace(steered.clean, recorded=unlimited, rounded=True, uncertain=None, flips=None)
    return dataclasses.replace(steered, recorded=unlimited, rounded=True, clean=clean)


def fidelity_of(original: Errors, measured: Sequence[Errors]) -> HookParity:
    """Return the record of a hook: the errors of the original, the largest of several graphs, and the budget."""
    worst = Errors(max(errors.token for errors in measured), max(errors.element for errors in measured))
    return HookParity(original, worst, fidelity_budget(original, worst))


def features_of(original: Array, artifact: Array) -> Features:
    """Compare which features are on in two acts_post, `(tokens, d_sae)`: the original's and the artifact's."""
    before, now = original != 0, artifact != 0
    on = max(1, int(before.sum()))
    kept, gained = int((before & now).sum()) / on, int((now & ~before).sum()) / on
    return Features(kept, gained, float(before.sum(axis=1).mean()), float(now.sum(axis=1).mean()))


def explained_variance(hooks: Hooks, target: Array | None) -> float | None:
    """Return the fraction of the variance that the reconstruction explains.

    It is `1 - sum |y - recons|^2 / sum |y - mean y|^2`, with `y` the input or, for a transcoder, the target. It is 1 if
    `y` does not vary, and None if a transcoder's target is unknown.
    """
    if target is None and HOOK_ERROR not in hooks:
        return None
    wanted = (hooks[HOOK_INPUT] if target is None else target).astype(np.float64)
    spread = float(((wanted - wanted.mean(axis=0)) ** 2).sum())
    return 1.0 - float(((wanted - hooks[HOOK_RECONS]) ** 2).sum()) / spread if spread else 1.0


def describe_fidelity(fidelity: Fidelity) -> str:
    """Return the fidelity as a sentence."""
    features = fidelity.features
    errors = ", ".join(f"{name} {record.artifact.token:.2%}" for name, record in fidelity.hooks.items())
    known = fidelity.explained_original is not None
    explained = f"; variance explained {fidelity.explained_original:.4f} -> {fidelity.explained:.4f}" if known else ""
    return (
        f"fidelity to float32 on {fidelity.tokens} tokens: largest token errors: {errors}; "
        f"{features.kept:.2%} of the features that are on stay on, {1 - features.kept:.2%} are lost, "
        f"{features.gained:.2%} gained, L0 {features.l0_original:.1f} -> {features.l0:.1f}{explained}"
    )

"""What an artifact of lower precision loses, worked out by hand."""

import math

import numpy as np
import pytest

from runtime.artifact.manifest import Errors, Features, Fidelity, HookParity
from runtime.artifact.names import HOOK_ERROR, HOOK_INPUT, HOOK_RECONS
from runtime.parity.fidelity import describe_fidelity, explained_variance, features_of, fidelity_of, without_budgets
from tests.support.references import make_reference, make_steered


def test_the_largest_errors_of_several_graphs_are_recorded():
    found = fidelity_of(Errors(0.25, 0.5), [Errors(1.0, 3.0), Errors(2.0, 1.0)])
    assert found == HookParity(Errors(0.25, 0.5), Errors(2.0, 3.0), Errors(4.5, 7.0))


def test_features_that_stay_on_are_lost_and_gained():
    original = np.array([[1.0, 2, 3, -4, 0], [0, 0, 0, 0, 0]])
    artifact = np.array([[9.0, 9, 9, 0, 0], [0, 0, 0, 0, -9]])
    assert features_of(original, artifact) == Features(0.75, 0.25, 2.0, 2.0)
    assert features_of(original[1:], artifact[:1]) == Features(0.0, 3.0, 0.0, 3.0)


def test_the_variance_that_is_explained():
    hooks = {HOOK_INPUT: np.float32([[1, 0], [3, 0], [5, 6]]), HOOK_RECONS: np.float32([[1, 0], [3, 1], [5, 4]]),
             HOOK_ERROR: None}  # fmt: skip
    assert explained_variance(hooks, None) == pytest.approx(1 - 5 / 32)
    target = np.float32([[1, 0], [3, 1], [5, 0]])
    assert explained_variance(hooks, target) == pytest.approx(1 - 16 / (8 + 2 / 3))
    without = {hook: y for hook, y in hooks.items() if hook != HOOK_ERROR}
    assert explained_variance(without, None) is None
    assert explained_variance(without, target) == explained_variance(hooks, target)
    assert explained_variance({**hooks, HOOK_INPUT: np.ones((3, 2), np.float32)}, None) == 1
    large = {**hooks, HOOK_INPUT: np.float32([[1e30, 0], [3e30, 0]]), HOOK_RECONS: np.float32([[1e30, 0], [2e30, 0]])}
    assert explained_variance(large, None) == pytest.approx(0.5)


@pytest.mark.parametrize("known", [True, False])
def test_a_fidelity_is_described_in_a_sentence(known):
    record = HookParity(Errors(0, 0), Errors(0.0123, 1), Errors(1, 1))
    explained = (0.9876, 0.9812) if known else (None, None)
    fidelity = Fidelity("cpu", 64, 0, {"recons": record}, {}, Features(0.98, 0.01, 12.3, 12.1), *explained)
    assert describe_fidelity(fidelity) == (
        "fidelity to float32 on 64 tokens: largest token errors: recons 1.23%; 98.00% of the features that are on stay "
        "on, 2.00% are lost, 1.00% gained, L0 12.3 -> 12.1" + ("; variance explained 0.9876 -> 0.9812" if known else "")
    )


def test_without_budgets_no_error_is_too_large_and_no_decision_wrong():
    clean = make_reference([[1.0, 2.0]], uncertain=np.array([[True, False]]), flips=np.array([1]))
    free = without_budgets(make_steered(clean, [0], [0.0], [1.0]))
    for reference in (free, free.clean):
        assert set(reference.recorded.values()) == {Errors(math.inf, math.inf)}
        assert set(reference.recorded) == set(clean.truth)
        assert reference.rounded
        assert reference.uncertain is None
        assert reference.flips is None

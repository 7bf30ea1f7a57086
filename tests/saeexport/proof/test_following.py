"""The truth has the decisions of the original, and edits are made in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from runtime import ParityError
from runtime.arrays.dtypes import rounded
from runtime.session.interventions import Intervention
from saeexport import HookedSAE
from saeexport.original.exportable import in_dtype
from saeexport.proof.decisions import find_uncertain, follow_decisions, stages_of, true_recons
from saeexport.proof.truth import for_tf32, reference_of, run_in_tf32, steered_reference_of
from tests.support.samples import HOOKS, make_sae, normal
from tests.support.zoo import D_IN, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


def decoded(sae, acts_post):
    state = {name: tensor.double().numpy() for name, tensor in sae.state_dict().items()}
    return acts_post @ state["W_dec"] + state["b_dec"]


@pytest.mark.parametrize("error_term", [True, False])
def test_the_truth_takes_the_decisions_of_the_original(error_term):
    sae = make_sae(use_error_term=error_term)
    before = reference_of(sae, normal(8, 6))
    on = [tuple(index) for index in np.argwhere(before.truth[POST] > 0.1)]
    off = [tuple(index) for index in np.argwhere(before.truth[PRE] < -0.1)]
    switched_off, switched_on = on[0], next(index for index in off if index[0] != on[0][0])
    faint = next(index for index in off if index[0] not in (switched_off[0], switched_on[0]))
    acts = before.original[POST].copy()
    acts[switched_off], acts[switched_on], acts[faint] = 0, -3.0, 1e-12
    after = follow_decisions(sae, dataclasses.replace(before, original={**before.original, POST: acts}))
    expected = before.truth[POST].copy()
    expected[switched_off], expected[switched_on], expected[faint] = 0, -3.0, np.float32(1e-12)
    assert (after.truth[POST] == expected).all()
    assert after.flips.tolist() == [int(token in (switched_off[0], switched_on[0], faint[0])) for token in range(8)]
    recons = decoded(sae, expected)
    for token in range(8):
        if token in (switched_off[0], switched_on[0]):
            assert after.truth[RECONS][token] == pytest.approx(recons[token], rel=1e-12)
            error = before.original[INPUT][token] - recons[token]
            assert after.truth[ERROR][token] == pytest.approx(error, rel=1e-12)
            output = before.original[INPUT][token] if error_term else recons[token]
            assert after.truth[OUTPUT][token] == pytest.approx(output, rel=1e-12)
        else:  # the reconstruction of the faint feature changes by less than its budget
            assert (after.truth[RECONS][token] == before.truth[RECONS][token]).all()


def test_a_feature_that_moves_by_its_tolerance_exactly_does_not_change_the_reconstruction():
    sae = make_sae()
    before = reference_of(sae, normal(8, 6))
    at, over = (tuple(index) for index in np.argwhere(before.truth[POST] == 0)[[0, -1]])
    assert at[0] != over[0]
    acts = before.original[POST].astype(np.float64)
    acts[at] = before.acts_pre_tolerance[at]
    acts[over] = np.nextafter(before.acts_pre_tolerance[over], 1)
    after = follow_decisions(sae, dataclasses.replace(before, original={**before.original, POST: acts}))
    changed = (after.truth[RECONS] != before.truth[RECONS]).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [over[0]]


class NeedsTokens(HookedSAE):
    """It does not take a batch without tokens, as nothing that has a largest value does."""

    def decode(self, acts_post, x=None):
        return super().decode(acts_post, x) + 0 * acts_post.max()


def test_an_original_that_decides_as_the_truth_need_not_take_a_batch_without_tokens():
    sae = told(NeedsTokens)
    reference = reference_of(sae, normal(8, 6))
    assert follow_decisions(sae, reference).flips.tolist() == [0] * 8


def test_an_original_that_decides_as_the_truth_changes_nothing():
    sae = make_sae()
    before = reference_of(sae, normal(8, 6))
    after = follow_decisions(sae, before)
    assert after.flips.tolist() == [0] * 8
    assert all((after.truth[hook] == y).all() for hook, y in before.truth.items())


class Told(HookedSAE):
    """It notes what it is asked, and calls the first feature uncertain."""

    def undetermined(self, acts_pre, acts_post, tolerance):
        self.asked = (acts_pre, acts_post, tolerance, self.W_enc @ self.W_dec)
        return torch.arange(acts_pre.shape[1]).expand_as(acts_pre) == 0


class Short(Told):
    def undetermined(self, acts_pre, acts_post, tolerance):
        return torch.zeros(3, dtype=torch.bool)


class Numbers(Told):
    def undetermined(self, acts_pre, acts_post, tolerance):
        return acts_pre


class Whole(Told):
    def undetermined(self, acts_pre, acts_post, tolerance):
        return 3


class Failing(Told):
    def undetermined(self, acts_pre, acts_post, tolerance):
        raise KeyError("gate")


class Silent(HookedSAE):
    """As a class that is not derived from HookedSAE, it lacks what tells about uncertain features."""

    undetermined = features_compete = property()  # reading it raises an AttributeError


class Half(Told):
    features_compete = property()


def told(kind):
    return kind(dict(d_in=6, d_sae=16, hook_name="h", seed=0, device="cpu"))


@pytest.mark.parametrize("compete", [True, False])
def test_a_class_tells_which_features_are_uncertain(compete):
    sae = told(Told)
    sae.features_compete = compete
    reference = reference_of(sae, normal(8, 6))
    acts_pre, acts_post, tolerance, product = sae.asked
    assert {value.dtype for value in (acts_pre, acts_post, tolerance)} == {torch.float64}
    assert product.dtype == torch.float64
    assert (acts_pre.numpy() == reference.original[PRE]).all()
    assert (acts_post.numpy() == reference.original[POST]).all()
    assert tolerance.numpy() == pytest.approx(reference.acts_pre_tolerance)
    assert np.argwhere(reference.uncertain.any(axis=0)).tolist() == [[0]]
    assert reference.uncertain[:, 0].all()
    assert (reference.flips is None) == compete
    found = find_uncertain(sae, reference, dataclasses.replace(reference, flips=np.full(8, 7)))
    assert found.flips is None if compete else found.flips.tolist() == [7] * 8


@pytest.mark.parametrize(("kind", "message"), [
    (Short, r"Short.undetermined returned torch.bool \[3\] for acts_pre of shape \[8, 16\]; it must return a bool"),
    (Numbers, r"Numbers.undetermined returned torch.float64 \[8, 16\] for acts_pre"),
    (Whole, "Whole.undetermined returned a int for acts_pre"),
    (Failing, "Failing.undetermined fails on the activations: KeyError: 'gate'"),
])  # fmt: skip
def test_a_class_that_tells_something_else_is_refused(kind, message):
    with pytest.raises(Exception, match=message):
        reference_of(told(kind), normal(8, 6))


def test_a_class_that_does_not_say_whether_its_features_compete_has_gates():
    assert reference_of(told(Half), normal(8, 6)).flips is not None


@pytest.mark.parametrize("kind", [HookedSAE, Silent])
def test_an_sae_without_uncertain_features(kind):
    reference = reference_of(told(kind), normal(8, 6))
    assert reference.uncertain is None
    assert reference.flips is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stages_of_the_original(dtype):
    sae = in_dtype(make_sae(), dtype)
    reference = reference_of(sae, rounded(normal(8, 6), dtype))
    stages, tokens = stages_of(sae, reference), np.arange(8) % 3 == 0
    assert (stages.activate(tokens, reference.original[PRE][tokens]) == reference.original[POST][tokens]).all()
    assert (stages.decode(tokens, reference.original[POST][tokens]) == reference.original[RECONS][tokens]).all()
    acts_post = reference.truth[POST]
    assert true_recons(sae, reference, acts_post) == pytest.approx(decoded(sae, acts_post), rel=1e-12)


@pytest.mark.parametrize("error_term", [True, False])
def test_the_truth_of_an_edit(error_term):
    sae = make_sae(use_error_term=error_term)
    clean = reference_of(sae, normal(8, 6))
    edits = Intervention([3, 5], [0.0, 2.0], [1.5, 0.25])
    steered = steered_reference_of(sae, clean, edits)
    acts = clean.truth[POST].copy()
    acts[:, 3], acts[:, 5] = 1.5, 2 * acts[:, 5] + 0.25
    assert (steered.truth[POST] == acts).all()
    assert (steered.truth[PRE] == clean.truth[PRE]).all()
    assert steered.truth[RECONS] == pytest.approx(decoded(sae, acts), rel=1e-12)
    assert (steered.truth[ERROR] == clean.truth[ERROR]).all()
    output = decoded(sae, acts) + (clean.truth[ERROR] if error_term else 0)
    assert steered.truth[OUTPUT] == pytest.approx(output, rel=1e-12)
    assert steered.original[POST].dtype == np.float32
    assert (steered.original[POST] == edits(clean.original[POST])).all()
    assert steered.original[RECONS] == pytest.approx(steered.truth[RECONS], rel=1e-4, abs=1e-5)
    assert steered.clean is clean
    assert steered.intervention is edits


def test_tf32_has_budgets_of_its_own_and_the_truth_of_float32():
    sae = make_sae()
    clean = reference_of(sae, normal(8, 6))
    steered = steered_reference_of(sae, clean, Intervention([3], [0.0], [1.5]))
    measured = run_in_tf32(sae, steered)
    for reference, exact in ((measured, steered), (measured.clean, clean)):
        for hook in (PRE, RECONS):
            assert 1e-5 < reference.errors(hook, reference.original[hook]).token < 1e-2
            assert reference.budgets[hook].token > 10 * exact.budgets[hook].token
    judged = for_tf32(sae, steered, measured)
    assert judged.recorded == measured.budgets
    assert judged.clean.recorded == measured.clean.budgets
    assert judged.clean.truth is clean.truth
    assert judged.truth is steered.truth
    assert judged.original is steered.original


def test_the_truth_in_tf32_has_the_decisions_of_the_original_in_tf32():
    sae = sae_of("jumprelu", use_error_term=False)
    clean = reference_of(sae, normal(200, D_IN))
    steered = steered_reference_of(sae, clean, Intervention([3], [0.0], [1.5]))
    measured = run_in_tf32(sae, steered)
    for reference, exact in ((measured, steered), (measured.clean, clean)):
        on = reference.original[POST] != 0
        assert (on != (exact.original[POST] != 0)).any()
        assert ((reference.truth[POST] != 0) == on).all()
        assert reference.truth[RECONS] == pytest.approx(decoded(sae, reference.truth[POST]), rel=1e-3, abs=1e-3)


class Saturating(HookedSAE):
    """It adds up large activations in lower precision."""

    def decode(self, acts_post, x=None):
        recons = super().decode(acts_post, x)
        return recons * (1 + 0.01 * (acts_post.max() > 50)) if recons.dtype == torch.float32 else recons


def test_an_original_that_is_inexact_under_an_edit_is_refused():
    sae = told(Saturating)
    clean = reference_of(sae, normal(8, 6))
    with pytest.raises(ParityError, match="hook_sae_recons: PyTorch's own error .* on most tokens it is more than the"):
        steered_reference_of(sae, clean, Intervention([3], [0.0], [100.0]))


def test_a_class_that_computes_in_place_does_not_widen_the_tolerance():
    class InPlace(HookedSAE):
        def undetermined(self, acts_pre, acts_post, tolerance):
            return acts_pre.abs_() <= tolerance.mul_(2)

    sae = make_sae()
    reference = follow_decisions(sae, reference_of(sae, normal(8, 6)))
    before = {hook: y.copy() for hook, y in reference.original.items()}, reference.acts_pre_tolerance.copy()
    sae.__class__ = InPlace
    found = find_uncertain(sae, reference)
    assert (reference.acts_pre_tolerance == before[1]).all()
    assert (found.uncertain == (np.abs(before[0][PRE]) <= 2 * before[1])).all()
    assert all((reference.original[hook] == y).all() for hook, y in before[0].items())

"""The parity rule: correct outputs pass, and every kind of wrong output fails with a reason."""

import dataclasses

import numpy as np
import pytest
import torch

from runtime import ParityError
from runtime.artifact.budgets import FACTOR, FLOOR
from runtime.artifact.manifest import Errors
from runtime.parity.decisions import Stages, follow_graph
from runtime.parity.judge import judge
from runtime.parity.reference import Reference
from runtime.parity.report import Report
from saeexport.proof.truth import reference_of
from tests.support import oracle
from tests.support.samples import HOOKS, make_sae, normal

PRE, POST, RECONS, ERROR, OUTPUT = HOOKS[1:]


@pytest.fixture(params=[True, False], ids=["error_term", "no_error_term"])
def reference(request):
    return reference_of(make_sae(d_in=24, d_sae=96, use_error_term=request.param), normal(32, 24))


def outputs_of(reference):
    """Return correct outputs that a test can change."""
    return {hook: reference.original[hook].copy() for hook in HOOKS}


def failures(reference, outputs, expected=HOOKS):
    verdicts = judge("model", expected, outputs, reference)
    return [failure for verdict in verdicts for failure in verdict.failures]


def only(reference, outputs, **more):
    (failure,) = failures(reference, outputs, **more)
    return failure


def test_the_truth_is_that_of_the_oracle():
    sae, x = make_sae(d_in=24, d_sae=96), normal(32, 24)
    reference, truth = reference_of(sae, x), oracle.six_hooks(sae.state_dict(), x, True)
    for hook in HOOKS[1:]:
        np.testing.assert_allclose(reference.truth[hook], truth[hook], rtol=oracle.RTOL, atol=oracle.ATOL)


def test_the_original_itself_passes(reference):
    assert failures(reference, outputs_of(reference)) == []


def test_another_order_of_summation_passes(reference):
    outputs = outputs_of(reference)
    sae = make_sae(d_in=24, d_sae=96, use_error_term=reference.use_error_term)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(reference.original[HOOKS[0]])
    pre = ((x - sae.b_dec)[:, order] @ sae.W_enc[order] + sae.b_enc).detach().numpy()
    assert (pre != outputs[PRE]).any()
    outputs[PRE], outputs[POST] = pre, np.maximum(pre, 0)
    assert failures(reference, outputs) == []


def test_budgets_are_calibrated_by_the_original(reference):
    budgets = reference.budgets
    for hook in HOOKS[1:]:
        own = reference.errors(hook, reference.original[hook])
        assert 0 < own.token < 1e-6
        floor = FLOOR["float32"] * (2 if hook in (ERROR, OUTPUT) else 1)
        assert budgets[hook] == Errors(FACTOR * own.token + floor, FACTOR * own.element + floor)


def test_an_error_is_measured_relative_to_the_inputs():
    zeros, ones = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    truth = {PRE: -ones.astype(float), POST: zeros.astype(float), RECONS: zeros.astype(float)}
    original = {HOOKS[0]: ones, PRE: -ones, POST: zeros, RECONS: zeros}
    reference = Reference(original, truth, use_error_term=False)
    y = zeros.copy()
    y[0, 1] = 0.5
    assert reference.errors(POST, y) == Errors(token=0.25, element=0.5)  # ||acts_pre|| is 2, its RMS 1
    assert reference.errors(RECONS, y) == Errors(token=0.25, element=0.5)  # ||input|| + ||recons|| is 2
    nothing = Reference({HOOKS[0]: zeros, RECONS: zeros}, {RECONS: zeros.astype(float)}, use_error_term=False)
    assert nothing.errors(RECONS, zeros) == Errors(0.0, 0.0)
    assert nothing.errors(RECONS, y) == Errors(np.inf, np.inf)


@pytest.mark.parametrize("hook", HOOKS[1:])
def test_a_wrong_value_is_named_with_both_values_error_and_budget(reference, hook):
    outputs = outputs_of(reference)
    outputs[hook][3, 5] += np.float32(0.25)
    wrong, right = outputs[hook][3, 5], reference.original[hook][3, 5]
    message = "\n".join(failures(reference, outputs))
    budget = reference.budgets[hook].element
    for part in (f"model: {hook}: the element error is", f"its budget {budget:.3e}", "Worst at [3, 5]",
                 f"the artifact has {wrong:.9g}, the original {right:.9g}"):  # fmt: skip
        assert part in message


def test_a_spread_error_is_seen_by_the_token_rule_first(reference):
    outputs = outputs_of(reference)
    draws = np.random.default_rng(0).standard_normal(outputs[PRE].shape)
    outputs[PRE] = (outputs[PRE] + draws * reference.scale(PRE) * reference.budgets[PRE].token * 1.3).astype(np.float32)
    assert any("the token error" in failure for failure in failures(reference, outputs))


def test_products_in_tf32_fail(reference):
    """CUDA would round factors to 10 bits like this without `use_tf32=0`."""

    def tf32(array):
        bits = np.asarray(array, np.float32).view(np.uint32)
        return ((bits + 0x1000) & 0xFFFFE000).view(np.float32)

    sae, outputs = make_sae(d_in=24, d_sae=96), outputs_of(reference)
    state = {name: tensor.numpy() for name, tensor in sae.state_dict().items()}
    pre = tf32(outputs[HOOKS[0]] - state["b_dec"]) @ tf32(state["W_enc"]) + state["b_enc"]
    outputs[PRE], outputs[POST] = pre, np.maximum(pre, 0)
    seen = failures(reference, outputs)
    assert {failure.split(": ")[1] for failure in seen} >= {PRE, POST}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("hook", HOOKS[1:])
def test_what_is_not_finite_fails(reference, hook, value):
    outputs = outputs_of(reference)
    outputs[hook][3, 5] = value
    assert f"{hook}: it is {value} at [3, 5], the original" in "\n".join(failures(reference, outputs))


def test_the_input_must_be_bitwise(reference):
    outputs = outputs_of(reference)
    outputs[HOOKS[0]][3, 5] = np.nextafter(outputs[HOOKS[0]][3, 5], np.float32(9))
    assert "hook_sae_input: it is" in only(reference, outputs)
    assert "at [3, 5]" in only(reference, outputs)


def test_minus_zero_is_not_zero_at_the_input(reference):
    reference.original[HOOKS[0]][0, 0] = 0.0
    outputs = outputs_of(reference)
    outputs[HOOKS[0]][0, 0] = -0.0
    assert any("hook_sae_input" in failure for failure in failures(reference, outputs))


def test_the_sum_must_be_exact(reference):
    outputs = outputs_of(reference)
    outputs[OUTPUT][3, 5] = np.nextafter(outputs[OUTPUT][3, 5], np.float32(9))
    parts = "hook_sae_recons + hook_sae_error" if reference.use_error_term else "hook_sae_recons is"
    assert parts in only(reference, outputs)
    assert "at [3, 5]" in only(reference, outputs)


def test_a_feature_that_is_on_far_from_the_kink_fails_however_faint(reference):
    outputs = outputs_of(reference)
    token, feature = map(int, np.argwhere(reference.truth[PRE] < -0.5)[0])
    outputs[POST][token, feature] = 1e-12
    failure = only(reference, outputs)
    assert f"feature {feature} of token {token} is on (9.99999996e-13)" in failure
    assert f"the truth of its preactivation is {reference.truth[PRE][token, feature]:.6g}" in failure
    assert "more like it" not in failure
    outputs[POST][tuple(np.argwhere(reference.truth[PRE] < -0.5)[1])] = 1e-12
    assert only(reference, outputs).endswith(" (and 1 more like it).")


@pytest.mark.parametrize("shown", [True, False], ids=["acts_pre shown", "not shown"])
def test_a_feature_may_flip_at_the_kink_within_the_error(reference, shown):
    token, feature = map(int, np.argwhere(reference.truth[PRE] < -0.5)[0])
    stages = Stages(lambda tokens, pre: np.maximum(pre, 0).astype(np.float32), lambda tokens, acts: None)
    for distance, own, passes in ((0.5, 1e-12, True), (0.5, -1e-12, not shown), (2.0, 1e-12, False)):
        truth = {hook: array.copy() for hook, array in reference.truth.items()}
        truth[PRE][token, feature] = -distance * reference.acts_pre_tolerance[token, feature]
        moved = dataclasses.replace(reference, truth=truth, recorded=reference.budgets)
        outputs = {hook: reference.original[hook].copy() for hook in ((PRE, POST) if shown else (POST,))}
        outputs[POST][token, feature] = 1e-12
        if shown:
            outputs[PRE][token, feature] = own
        followed = follow_graph(moved, outputs, stages)
        verdicts = judge("encode", list(outputs), outputs, followed)
        assert (not any(verdict.failures for verdict in verdicts)) == passes
        if passes:
            assert followed.diverging_tokens is None  # the later hooks change too little
            assert "(1 decision differing from the original)" in str(Report("title", verdicts))


@pytest.mark.parametrize("bias", [-1e9, -1e30])
def test_a_very_large_preactivation_does_not_widen_the_tolerance_of_the_rest(bias):
    sae = make_sae(d_in=24, d_sae=96)
    sae.b_enc.data[5] = bias
    reference, ordinary = (reference_of(each, normal(32, 24)) for each in (sae, make_sae(d_in=24, d_sae=96)))
    assert reference.tokens == 32
    for hook in (PRE, POST):
        assert reference.budgets[hook].token < 2 * ordinary.budgets[hook].token
    assert np.delete(reference.acts_pre_tolerance, 5, axis=1).max() < 2 * ordinary.acts_pre_tolerance.max()


def test_two_outputs_swapped(reference):
    outputs = outputs_of(reference)
    outputs[RECONS], outputs[ERROR] = outputs[ERROR], outputs[RECONS]
    seen = {failure.split(": ")[1] for failure in failures(reference, outputs)}
    assert {RECONS, ERROR} <= seen


@pytest.mark.parametrize("hook", HOOKS)
def test_a_missing_output_is_seen(reference, hook):
    outputs = outputs_of(reference)
    del outputs[hook]
    assert f"model: {hook}: the output is missing; there are " in only(reference, outputs)


def test_an_output_that_is_renamed_is_missing_and_extra(reference):
    outputs = {("hook_recons" if hook == RECONS else hook): y for hook, y in outputs_of(reference).items()}
    seen = failures(reference, outputs)
    assert [failure.split(": ")[1] for failure in seen] == [RECONS, "hook_recons"]
    assert "the output is missing" in seen[0]
    assert "there should be no such output" in seen[1]


def test_an_extra_output_is_seen(reference):
    outputs = {**outputs_of(reference), "hook_mlp_out": np.zeros(3)}
    assert "hook_mlp_out: there should be no such output" in only(reference, outputs)


def test_outputs_in_another_order(reference):
    outputs = outputs_of(reference)
    outputs = {hook: outputs[hook] for hook in reversed(HOOKS)}
    assert f"outputs are {', '.join(reversed(HOOKS))}, expected {', '.join(HOOKS)}" in only(reference, outputs)


@pytest.mark.parametrize("hook", HOOKS)
def test_another_dtype_or_shape(reference, hook):
    for spoil in (lambda y: y.astype(np.float64), lambda y: y[:-1], lambda y: y[:, None]):
        outputs = outputs_of(reference)
        outputs[hook] = spoil(outputs[hook])
        assert f"model: {hook}: it is {outputs[hook].shape} {outputs[hook].dtype}, the original" in only(
            reference, outputs
        )


@pytest.mark.parametrize("where", ["original", "truth"])
def test_a_reference_must_be_finite(reference, where):
    arrays = {hook: array.copy() for hook, array in getattr(reference, where).items()}
    arrays[PRE][2, 7] = np.nan
    with pytest.raises(ParityError, match=rf"{PRE} is nan at \[2, 7\]: parity is judged on finite values only"):
        dataclasses.replace(reference, **{where: arrays})


def test_a_report_shows_a_row_per_output_and_every_failure(reference):
    outputs = outputs_of(reference)
    outputs[RECONS][3, 5] += 1
    del outputs[PRE]
    report = Report("title", judge("model", HOOKS, outputs, reference), ["a file is missing"])
    text = str(report)
    assert text.startswith("title\n")
    assert text.count("FAIL: ") == len(report.failures) >= 3
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("model")}
    assert list(rows) == HOOKS
    assert "FAIL" in rows[RECONS]
    assert rows[ERROR].endswith("ok")
    with pytest.raises(ParityError) as error:
        report.raise_for_failures()
    assert all(failure in str(error.value) for failure in report.failures)


def test_a_report_without_failures_does_not_raise(reference):
    Report("title", judge("model", HOOKS, outputs_of(reference), reference)).raise_for_failures()

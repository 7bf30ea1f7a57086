"""Near a threshold a correct program may decide either way. The proof accepts both decisions there, and only there."""

import numpy as np
import pytest
import torch

import saeexport
from runtime.arrays.dtypes import rounded
from runtime.artifact.budgets import FACTOR, FLOOR
from runtime.parity.decisions import adopt_decisions, follow_graph
from runtime.parity.judge import judge
from saeexport import ExportError, HookedSAE, export
from saeexport.original.exportable import in_dtype
from saeexport.proof import activations
from saeexport.proof.decisions import stages_of
from saeexport.proof.truth import reference_of
from tests.support.samples import HOOKS, normal
from tests.support.zoo import D_IN, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
DECIDING = ["jumprelu", "topk", "abstopk", "gated"]


def at_a_threshold(architecture, token, distance):
    """Return an SAE, inputs, and a feature whose preactivation for `token` is `distance` away from a threshold."""
    sae, x, feature = sae_of(architecture), torch.from_numpy(normal(40, D_IN)), 5
    with torch.no_grad():
        pre = sae.preactivations(x[token])
        if architecture == "jumprelu":
            sae.threshold[5] = max(float(pre[5]), 0.3)
            sae.b_enc[5] += sae.threshold[5] - pre[5] + distance
        elif architecture == "gated":
            sae.b_gate[5] += distance - (sae._product(x[token]) + sae.b_gate)[5]
            sae.b_mag[5] += 1.0 - pre[5]
        else:
            size = pre.abs() if architecture == "abstopk" else pre
            last = size.topk(sae.cfg.k).values[-1]
            feature = 5 if size[5] < last else int(size.argmin())
            sae.b_enc[feature] += last - pre[feature] - distance
    return sae, x.numpy(), feature


def failures(outputs, reference, hooks=(PRE, POST)):
    return [failure for verdict in judge("encode", hooks, outputs, reference) for failure in verdict.failures]


# The truth and the uncertain features


@pytest.mark.parametrize("architecture", DECIDING)
@pytest.mark.parametrize("distance", [0.0, 1e-7, -1e-7])
def test_the_truth_decides_as_the_original(architecture, distance):
    sae, x, _ = at_a_threshold(architecture, 7, distance)
    reference = reference_of(sae, x)
    assert reference.tokens == 40
    np.testing.assert_array_equal(reference.truth[POST] != 0, reference.original[POST] != 0)
    assert reference.budgets[POST].element < 1e-4


@pytest.mark.parametrize("distance", [0.0, 1e-7, -1e-7, 1e-2])
def test_a_gate_near_its_threshold_is_uncertain(distance):
    sae, x, feature = at_a_threshold("gated", 7, distance)
    reference = reference_of(sae, x)
    assert reference.is_uncertain[7, feature] == (distance < 1e-3)
    assert reference.is_uncertain.any(axis=1).sum() < 10
    if distance < 1e-3:
        for on in (False, True):
            decided = reference.original[POST].copy()
            decided[7, feature] = on * reference.original[PRE][7, feature]
            adopted = adopt_decisions(reference, decided).truth[POST][7, feature]
            assert adopted == pytest.approx(on * reference.truth[PRE][7, feature], rel=1e-6)


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "abstopk"])
def test_where_acts_pre_decides_nothing_is_uncertain(architecture):
    sae, x, _ = at_a_threshold(architecture, 7, 1e-7)
    assert not reference_of(sae, x).is_uncertain.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_features_that_tie_for_the_last_place_are_uncertain(architecture, dtype):
    sae = sae_of(architecture)
    with torch.no_grad():
        for name in ("W_enc", "b_enc"):  # three of a kind, which are the last two of nine for some token
            parameter = getattr(sae, name)
            parameter[..., :3] = parameter[..., :1]
    sae = in_dtype(sae, dtype)
    reference = reference_of(sae, rounded(normal(200, D_IN), dtype))
    acts_pre, on = reference.original[PRE], reference.original[POST] != 0
    torn = (on[:, :3].any(axis=1) & ~on[:, :3].all(axis=1)) & (np.abs(acts_pre[:, 0]) > 0)
    assert torn.sum() > 3
    assert reference.is_uncertain[torn, :3].all()
    if dtype == "float32":
        assert not reference.is_uncertain[:, 3:].any()
    swapped = reference.original[POST].copy()
    for token in np.flatnonzero(torn):  # the feature that is on gives its place to the last one that ties with it
        tied = np.flatnonzero(reference.is_uncertain[token])
        swapped[token, tied] = np.where(on[token, tied][::-1], acts_pre[token, tied], 0)
    adopted = adopt_decisions(reference, swapped).truth[POST]
    np.testing.assert_array_equal(adopted != 0, swapped != 0)
    np.testing.assert_allclose(adopted[torn], swapped[torn], rtol=FACTOR * FLOOR[dtype])
    swapped[torn] = np.where(reference.is_uncertain[torn], 0, swapped[torn])  # another number of features is on
    assert (adopt_decisions(reference, swapped).truth[POST] == reference.truth[POST]).all()


@pytest.mark.parametrize("architecture", DECIDING)
@pytest.mark.parametrize("tokens", [slice(None), [7, 7, 7]], ids=["some", "all"])
def test_tokens_at_a_threshold_are_proved_too(tmp_path, monkeypatch, architecture, tokens):
    monkeypatch.setattr(activations, "MIN_DISTINCT", 1)  # the exporter refuses a single repeated token
    sae, x, _ = at_a_threshold(architecture, 7, 1e-8)
    x = x[tokens]
    artifact = export(sae, tmp_path / "sae", x)
    assert artifact.manifest.parity.tokens == len(x)
    saeexport.assert_parity(artifact.path, sae, x, device="cpu")


# Following a graph


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "abstopk"])
def test_another_decision_is_right_if_its_own_acts_pre_explains_it(architecture):
    sae, x, feature = at_a_threshold(architecture, 7, 3e-7)
    reference = reference_of(sae, x)
    stages = stages_of(sae, reference)
    outputs = {hook: reference.original[hook].copy() for hook in (PRE, POST)}
    pre, was_on = outputs[PRE], outputs[POST][7, feature] != 0
    pre[7, feature] += np.float32(-5e-7 if was_on else 5e-7) * np.sign(pre[7, feature])
    outputs[POST] = stages.activate(np.ones(40, bool), pre)
    assert (outputs[POST][7, feature] != 0) != was_on
    assert failures(outputs, reference)  # the reference does not follow the graph here
    assert failures(outputs, follow_graph(reference, outputs, stages)) == []
    # If a graph does not output its acts_pre, a nearby acts_pre explains its decision.
    assert failures({POST: outputs[POST]}, follow_graph(reference, {POST: outputs[POST]}, stages), [POST]) == []
    # The same activations are wrong if the acts_pre of the graph contradicts them,
    shown = {PRE: reference.original[PRE], POST: outputs[POST]}
    assert f"feature {feature} of token 7" in "".join(failures(shown, follow_graph(reference, shown, stages)))
    # or if no nearby acts_pre explains them.
    last = np.argmax(np.where(outputs[POST][8] != 0, np.abs(outputs[POST][8]), -1))
    outputs[POST][8, last] = 0
    assert f"feature {last} of token 8 is off" in "".join(failures(
        {POST: outputs[POST]}, follow_graph(reference, {POST: outputs[POST]}, stages), [POST]))  # fmt: skip


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_tolerance_has_the_size_of_the_preactivations(size):
    sae, x = sae_of("jumprelu"), normal(40, D_IN)
    with torch.no_grad():
        for name in ("b_enc", "b_dec", "threshold"):
            getattr(sae, name).mul_(size)
    tolerance = reference_of(sae, (size * x).astype(np.float32)).acts_pre_tolerance
    assert tolerance.max() < 1e-4 * size
    assert tolerance.min() > 1e-8 * size


def test_what_is_half_on_at_a_threshold_is_wrong():
    """Both decisions are right, but a value between them is wrong."""
    sae, x, feature = at_a_threshold("gated", 7, 1e-7)
    reference = reference_of(sae, x)
    stages = stages_of(sae, reference)
    for part, passes in ((0.0, True), (1.0, True), (0.5, False)):
        outputs = {PRE: reference.original[PRE], POST: reference.original[POST].copy()}
        outputs[POST][7, feature] = part * reference.original[PRE][7, feature]
        assert (not failures(outputs, follow_graph(reference, outputs, stages))) == passes


class OwnGate(HookedSAE):
    """Switches on the features whose part of the product is large, which `acts_pre` shows except for rounding."""

    def activation(self, acts_pre, x):
        return acts_pre * (self.centered(x) @ self.W_enc > 0.5)


class Explained(OwnGate):
    def undetermined(self, acts_pre, acts_post, tolerance):
        return (acts_pre - self.b_enc - 0.5).abs() <= tolerance


class Wrong(OwnGate):
    def undetermined(self, acts_pre, acts_post, tolerance):
        return tolerance[:1]


class Counts(OwnGate):
    def undetermined(self, acts_pre, acts_post, tolerance):
        return 3


class Fails(OwnGate):
    def undetermined(self, acts_pre, acts_post, tolerance):
        raise KeyError("gate")


def test_a_class_of_ones_own_says_which_decisions_acts_pre_does_not_determine(tmp_path):
    def made(kind):
        return in_dtype(kind(dict(d_in=D_IN, d_sae=256, hook_name="h", seed=0, device="cpu")), "bfloat16")

    x = rounded(normal(64, D_IN), "bfloat16")
    reference = reference_of(made(Explained), x)
    assert reference.is_uncertain.any()
    assert reference.flips is not None
    assert not reference_of(made(OwnGate), x).is_uncertain.any()
    export(made(Explained), tmp_path / "sae", x, dtype="bfloat16")
    with pytest.raises(
        ExportError, match=r"Wrong.undetermined returned torch.float64 \[1, 256\] .* must return a bool"
    ):
        reference_of(made(Wrong), x)
    with pytest.raises(ExportError, match=r"Counts.undetermined returned a int for acts_pre .* must return a bool"):
        reference_of(made(Counts), x)
    with pytest.raises(ExportError, match=r"Fails.undetermined fails on the activations: KeyError: 'gate'"):
        reference_of(made(Fails), x)


class Lenient(HookedSAE):
    """Also switches on features with small negative preactivations."""

    def activation(self, acts_pre, x):
        return acts_pre * (acts_pre > -0.5)


@pytest.mark.parametrize("distance", [2e-7, -2e-7, 1e-2, -1e-2])
def test_what_is_on_need_not_be_large(distance):
    sae, x = Lenient(dict(d_in=D_IN, d_sae=48, hook_name="h", seed=0, device="cpu")), normal(40, D_IN)
    with torch.no_grad():
        sae.b_enc[5] -= sae.preactivations(torch.from_numpy(x[7]))[5] + 0.5 - distance
    reference = reference_of(sae, x)
    assert (reference.original[POST][7, 5] != 0) == (distance > 0)
    outputs = {POST: reference.original[POST].copy()}
    outputs[POST][7, 5] = 0 if distance > 0 else reference.original[PRE][7, 5]
    found = failures(outputs, follow_graph(reference, outputs, stages_of(sae, reference)), [POST])
    assert bool(found) == (abs(distance) > 1e-3)

"""The comparison for programs in other languages measures what the parity rule measures, and accepts nothing more."""

import functools
import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runtime import IntegrityError, SAESession, read_artifact, verify
from runtime.parity.golden import load_golden
from runtime.parity.proof import judge_graphs
from runtime.parity.report import Report
from saeexport import export
from tests.support import plain, zoo
from tests.support.breaking import claim_weights, edit_weight, rewrite
from tests.support.samples import TINY, normal

COMPUTED = [f"hook_sae_{name}" for name in ("acts_pre", "acts_post", "recons", "error", "output")]
TOKENS = 12


class Case:
    """An artifact, and what its graph `model` computes from the golden batch."""

    def __init__(self, path):
        artifact = read_artifact(path)
        self.manifest, self.steered = artifact.manifest, load_golden(artifact)
        self.golden = load_file(path / "golden.safetensors")
        manifest = json.loads((path / "sae.json").read_text())
        self.budgets = {hook: record["budget"] for hook, record in manifest["parity"]["hooks"].items()}
        self.session = SAESession(path, "cpu")
        names = {"input": "hook_sae_input", "target": "target"}
        feeds = {tensor.name: self.golden[names[tensor.name]] for tensor in self.manifest.graphs["model"].inputs}
        self.outputs = self.session.run_graph("model", feeds)

    def plain_accepts(self, outputs):
        return plain.accepts(outputs, self.golden, self.budgets, self.manifest.sae.use_error_term)

    def failures(self, outputs):
        """Return what the parity rule says of a graph `model` with these outputs."""
        report = Report("changed outputs")

        def run(graph, feeds, tokens):
            return outputs if graph == "model" else self.session.run_graph(graph, feeds)

        judge_graphs(["model"], self.manifest, self.steered, run, report)
        return report.failures


@functools.cache
def case_of(architecture, use_error_term, folder):
    sae = zoo.sae_of(architecture, use_error_term=use_error_term)
    given = {"activations": normal(TOKENS, zoo.D_IN)}
    if zoo.takes_target(sae):
        given["targets"] = zoo.target_of(sae, TOKENS)
    return Case(export(sae, folder / f"{architecture}-{use_error_term}", **given).path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plain")


EVERY = pytest.mark.parametrize(
    ("architecture", "use_error_term"), [(name, term) for name in zoo.ARCHITECTURES for term in (True, False)]
)


@EVERY
def test_the_errors_are_those_of_the_parity_rule(architecture, use_error_term, folder):
    case = case_of(architecture, use_error_term, folder)
    for hook in case.budgets:
        expected = case.steered.clean.errors(hook, case.outputs[hook])
        token, element = plain.errors_of(hook, case.outputs[hook], case.golden)
        assert (token, element) == pytest.approx((expected.token, expected.element), rel=1e-6)


@EVERY
def test_a_correct_program_is_accepted(architecture, use_error_term, folder):
    case = case_of(architecture, use_error_term, folder)
    assert case.plain_accepts(case.outputs)


def change(outputs, case, rng):
    """Change some outputs at random, by about as much as their budgets allow, and return them."""
    outputs = {name: array.copy() for name, array in outputs.items()}
    hook = rng.choice(list(case.budgets))
    array, reference = outputs[hook], case.steered.clean
    allowed = np.broadcast_to(reference.scale(hook), array.shape) * case.budgets[hook]["element"]
    token, element = rng.integers(len(array)), rng.integers(array.shape[1])
    sign = rng.choice([-1, 1])
    way = rng.choice(["element", "token", "all", "switch", "move", "nan", "zero"])
    if way == "element":
        array[token, element] += sign * rng.uniform(0, 2) * allowed[token, element]
    elif way == "token":
        array[token] += rng.normal(0, 0.5, array.shape[1]) * allowed[token] * rng.choice([0.1, 1])
    elif way == "all":
        array *= 1 + sign * rng.choice([1e-8, 1e-7, 1e-6, 1e-5])
    elif way == "switch":
        array[token, element] = 0 if array[token, element] else sign * rng.choice([1e-30, 1e-9, 1e-3])
    elif way == "move":
        array[token] = np.roll(array[token], 1)
    elif way == "nan":
        array[token, element] = np.nan
    elif way == "zero":
        array[token] = 0
    if rng.random() < 0.7:
        recons = outputs["hook_sae_recons"]
        sums = case.manifest.sae.use_error_term
        outputs["hook_sae_output"] = recons + outputs["hook_sae_error"] if sums else recons.copy()
    return outputs


@EVERY
def test_what_it_accepts_the_parity_rule_accepts(architecture, use_error_term, folder):
    case, rng, found = case_of(architecture, use_error_term, folder), np.random.default_rng(7), Counter()
    for _ in range(60):
        outputs = change(case.outputs, case, rng)
        accepted = case.plain_accepts(outputs)
        found[accepted] += 1
        if accepted:
            assert case.failures(outputs) == []
    assert min(found[True], found[False]) >= 5, found


@pytest.mark.parametrize("factor", [1.5, 1.0001], ids=["visibly", "barely"])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_a_changed_weight_is_seen(artifact, name, factor):
    feature = int(np.argmax(load_file(artifact / "golden.safetensors")["hook_sae_acts_post"].max(0)))
    index = {"W_enc": (0, feature), "W_dec": (feature, 0), "b_enc": (feature,), "b_dec": (0,)}[name]
    rewrite(artifact, "weights.safetensors", edit_weight(name, index, factor))
    claim_weights(artifact)
    case = Case(artifact)
    assert not case.plain_accepts(case.outputs)


def test_an_outlier_does_not_widen_the_tolerance_of_other_features(folder):
    """A feature that is switched off by -1e9 is measured by its own size, and the others as if it were not there."""
    sae = zoo.sae_of("standard", use_error_term=True)
    sae.b_enc.data[3] = -1e9
    case = Case(export(sae, folder / "outlier", normal(TOKENS, zoo.D_IN)).path)
    assert case.plain_accepts(case.outputs)
    assert case.golden["scale.hook_sae_acts_pre"].max() < 10
    changed = {**case.outputs, "hook_sae_acts_pre": case.outputs["hook_sae_acts_pre"].copy()}
    changed["hook_sae_acts_pre"][0, 5] += 1e-3
    assert not case.plain_accepts(changed)


@pytest.mark.parametrize("name", ["scale.hook_sae_acts_post", "scale.steered.hook_sae_output"])
def test_a_scale_that_would_widen_the_tolerance_is_refused(artifact, name):
    def widen(path):
        tensors = load_file(path)
        tensors[name][3] *= 1.001
        save_file(tensors, path)

    rewrite(artifact, "golden.safetensors", widen)
    with pytest.raises(IntegrityError, match=f"{name} is not what the other tensors imply"):
        verify(artifact, "cpu")


def test_every_computed_tensor_has_a_scale():
    golden = load_file(TINY / "golden.safetensors")
    computed = {name.removeprefix("residual.") for name in golden if name.startswith("residual.")}
    assert {name.removeprefix("scale.") for name in golden if name.startswith("scale.")} == computed
    assert computed > set(COMPUTED)

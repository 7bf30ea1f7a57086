"""Defective artifacts in half precision: every check fails and names the place."""

import dataclasses

import numpy as np
import pytest
import torch
from onnx import helper
from safetensors.torch import load_file, save_file

import runtime
from runtime import IntegrityError, ParityError, SAESession
from runtime.arrays.dtypes import rounded, widened
from runtime.arrays.tensor import feed_of
from runtime.artifact.contracts import PORTABLE
from runtime.parity.decisions import Stages, follow_graph
from runtime.parity.judge import judge
from saeexport import ExportError, export
from saeexport import _export as exporting
from saeexport.original.architectures import TopKSAE
from saeexport.proof import prove as proving
from tests.support.breaking import edit_graph, failures_of, rewrite
from tests.support.samples import HOOKS, make_sae, normal
from tests.support.zoo import D_IN, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS

write_weights = exporting._write_weights


@pytest.fixture(params=["float16", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def artifact(tmp_path, dtype):
    """A copy of an artifact in half precision, for tests that break it."""
    return export(make_sae(), tmp_path / "sae", normal(50, 6), dtype=dtype).path


def test_values_beyond_float16_are_reported(tmp_path):
    sae = make_sae()
    with torch.no_grad():
        sae.W_enc *= 1000
    with pytest.raises(
        ParityError, match="hook_sae_acts_pre is .*inf.*float16 ends at 65504, .* take bfloat16, or flo"
    ):
        export(sae, tmp_path / "sae", 1000 * normal(30, 6), dtype="float16")
    with pytest.raises(ExportError, match="activations has values that are not finite in float16"):
        export(sae, tmp_path / "sae", 1e6 * normal(30, 6), dtype="float16")
    export(sae, tmp_path / "sae", 1000 * normal(30, 6), dtype="bfloat16")


WRONG = {
    "standard": {"b_enc": 0.2, "b_dec": 0.2},
    "jumprelu": {"threshold": 0.3, "b_dec": 0.2},
    "topk": {"b_enc": 0.2, "b_dec": 0.2},
    "gated": {"b_gate": 0.3, "b_dec": 0.2},
}


@pytest.mark.parametrize("architecture", WRONG)
@pytest.mark.parametrize("which", [0, 1], ids=["encoder", "decoder"])
def test_other_weights_are_not_written(tmp_path, monkeypatch, dtype, architecture, which):
    name, by = list(WRONG[architecture].items())[which]

    def spoilt(state, path):
        write_weights({**state, name: state[name] + by}, path)

    monkeypatch.setattr(exporting, "_write_weights", spoilt)
    with pytest.raises(ParityError, match=r"hook_sae_recons: the" if which else r"hook_sae_acts_p\w+: "):
        export(sae_of(architecture), tmp_path / "sae", normal(64, D_IN), dtype=dtype)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "gated"])
@pytest.mark.parametrize("stage", ["decode", "model"])
def test_a_wrong_decoder_is_seen_even_where_every_decision_is_another(tmp_path, dtype, architecture, stage):
    """The defect shows in `decode` on the original's activations, and in `model` against `decode`."""
    path = export(sae_of(architecture, use_error_term=True), tmp_path / "sae", normal(64, D_IN), dtype=dtype).path
    steered = runtime.parity.golden.load_golden(runtime.read_artifact(path))
    clean = steered.clean
    # As if every certain feature that is on were uncertain, and had been off in the original on every token.
    on = (clean.truth[POST] != 0) & ~clean.is_uncertain
    off = {**clean.truth, POST: np.where(on, 0.0, clean.truth[POST])}
    undecided = dataclasses.replace(clean, truth=off, uncertain=on | clean.is_uncertain)
    with SAESession(path, "cpu") as session:
        outputs = {k: widened(np.asarray(v)) for k, v in session.run_graph("model.wide", {
            "input": feed_of(clean.original[INPUT], dtype)}).items()}  # fmt: skip

        def decode(tokens, acts):
            return widened(np.asarray(session.run_graph("decode.wide", {POST: feed_of(acts, dtype)})[RECONS]))

        followed = follow_graph(undecided, outputs, Stages(lambda tokens, pre: outputs[POST][tokens], decode))
    assert followed.diverging_tokens.all()
    assert not [f for v in judge("model", HOOKS, outputs, followed) for f in v.failures if POST not in f]
    wrong = {**outputs, RECONS: rounded(outputs[RECONS] * 1.1, dtype)}
    assert any(RECONS in f for v in judge("model", HOOKS, wrong, followed) for f in v.failures)
    change = edit_graph(lambda model: next(
        node for node in reversed(model.graph.node) if node.op_type == "Gemm"
    ).attribute.append(helper.make_attribute("alpha", 1.1)))  # fmt: skip
    rewrite(path, f"{stage}.wide.onnx", change)
    assert any(f"{stage}.wide: {RECONS}" in failure for failure in runtime.verify(path, "cpu").failures)


def test_a_graph_that_does_not_round_is_seen(artifact, capsys):
    """The output is the sum of values that were not rounded."""

    def skip_rounding(model):
        casts = {node.input[0]: node for node in model.graph.node if node.op_type == "Cast"}
        wide = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        (add,) = (node for node in model.graph.node if node.op_type == "Add")
        for i, name in enumerate(add.input):
            add.input[i] = wide[wide[name]]
        assert casts

    rewrite(artifact, "model.wide.onnx", edit_graph(skip_rounding))
    assert "they must be equal" in failures_of(artifact, capsys)


def test_a_feature_that_is_on_and_certainly_off_is_seen(tmp_path, dtype):
    for architecture in ("standard", "jumprelu", "topk"):
        path = export(sae_of(architecture), tmp_path / architecture, normal(60, D_IN), dtype=dtype).path
        clean = runtime.parity.golden.load_golden(runtime.read_artifact(path)).clean
        outputs = {hook: y.copy() for hook, y in clean.original.items()}
        token, feature = map(int, np.argwhere(clean.truth[PRE] < -1.0)[0])
        outputs[POST][token, feature] = 2.0**-14
        failures = [f for v in judge("encode", [POST], {POST: outputs[POST]}, clean) for f in v.failures]
        assert any(f"feature {feature} of token {token} is on" in failure for failure in failures)


@pytest.mark.parametrize("graph", PORTABLE)
def test_portable_graphs_are_proved_at_export(tmp_path, monkeypatch, dtype, graph):
    """No CPU provider runs these graphs as they are; with casts around every operator it does."""
    write_graphs = exporting.write_graphs

    def negated(model):
        output = model.graph.output[1 if graph == "features" else -1].name
        node = next(node for node in model.graph.node if output in node.output)
        node.output[list(node.output).index(output)] = "right"
        model.graph.node.append(helper.make_node("Neg", ["right"], [output]))

    def spoilt(model, config, weights):
        specs = write_graphs(model, config, weights)
        edit_graph(negated)(weights.parent / f"{graph}.onnx")
        return specs

    monkeypatch.setattr(exporting, "write_graphs", spoilt)
    with pytest.raises(ParityError, match=rf"\n- {graph}: "):
        export(sae_of("jumprelu"), tmp_path / "sae", normal(40, D_IN), dtype=dtype)
    assert not any(tmp_path.iterdir())


def test_verify_names_the_graphs_that_it_did_not_run(artifact, capsys):
    assert str(runtime.verify(artifact, "cpu")).splitlines()[0].endswith(f"not run here: {', '.join(PORTABLE)}")


class RoundsOnce(TopKSAE):
    """It is as correct as its base class, and decides differently only where the decision depends on rounding."""

    def preactivations(self, x):
        return torch.addmm(self.b_enc, self.centered(x), self.W_enc)


def test_a_checkpoint_may_decide_differently_where_another_device_would(tmp_path, monkeypatch, dtype):
    load = proving.load

    def elsewhere(folder):
        sae = load(folder)
        sae.__class__ = RoundsOnce
        return sae

    monkeypatch.setattr(proving, "load", elsewhere)
    export(sae_of("topk", d_sae=512), tmp_path / "sae", normal(200, D_IN), dtype=dtype)

    def other(folder):
        sae = load(folder)
        sae.cfg.k += 1
        return sae

    monkeypatch.setattr(proving, "load", other)
    with pytest.raises(ExportError, match="computes something else than the SAE that is loaded from its artifact"):
        export(sae_of("topk", d_sae=512), tmp_path / "other", normal(200, D_IN), dtype=dtype)


def test_an_edit_that_cancels_exactly_is_not_a_decision(tmp_path, dtype):
    """Adding a negative value to a feature may give exactly 0 in one program and not in the other."""
    path = export(sae_of("abstopk"), tmp_path / "sae", normal(60, D_IN), dtype=dtype).path
    steered = runtime.parity.golden.load_golden(runtime.read_artifact(path))
    ids, scale, shift = (getattr(steered.intervention, name) for name in ("ids", "scale", "shift"))
    outputs = {POST: steered.original[POST].copy()}
    added = (scale != 0) & (shift != 0) & (outputs[POST][:, ids] != 0)
    token, place = map(int, np.argwhere(added)[0])
    column = ids[place]
    small = 0.1 * steered.budgets[POST].element * steered.scale(POST)[token, column]
    truth = steered.truth[POST].copy()
    truth[token, column], outputs[POST][token, column] = small, 0.0
    cancelled = dataclasses.replace(steered, truth={**steered.truth, POST: truth}, recorded=steered.budgets)
    assert np.abs(cancelled.truth[PRE][token, column]) > cancelled.acts_pre_tolerance[token, column]
    assert judge("steer", [POST], outputs, cancelled)[0].failures == ()
    other = next(feature for feature in np.flatnonzero(truth[token]) if feature not in ids)
    outputs[POST][token, other] = 0.0
    assert f"feature {other} of token {token} is off" in "".join(judge("steer", [POST], outputs, cancelled)[0].failures)


@pytest.mark.parametrize(("change", "message"), [
    (lambda places, flips: (places + 10**7, flips), "uncertain.bfloat16 are not indices into .* activations"),
    (lambda places, flips: (places, flips[:-1]), "uncertain.bfloat16.flips is int64 .*, expected int64"),
    (lambda places, flips: (places.float(), flips), "uncertain.bfloat16 is float32 .*, expected int64"),
], ids=["elsewhere", "too few", "no places"])  # fmt: skip
def test_invalid_uncertain_features_are_refused(tmp_path, change, message):
    path = export(sae_of("gated"), tmp_path / "sae", normal(60, D_IN), dtype="bfloat16").path

    def spoil(file):
        tensors = load_file(file)
        names = ["uncertain.bfloat16", "uncertain.bfloat16.flips"]
        changed = change(*(tensors[name] for name in names))
        save_file({**tensors, **{name: tensor.contiguous() for name, tensor in zip(names, changed, strict=True)}}, file)

    rewrite(path, "golden.safetensors", spoil)
    with pytest.raises(IntegrityError, match=f"{message}.*Export the SAE"):
        runtime.verify(path, "cpu")

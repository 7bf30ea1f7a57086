"""steer.onnx: the pass that makes it on all forms of decoders, its interface, and its proof."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

import runtime
from runtime import Add, IntegrityError, Intervention, SAEError, SAESession
from runtime.parity.verify import judge_session
from saeexport import export
from saeexport.graphs.passes.steer import add_interventions
from saeexport.proof.truth import reference_of, steered_reference_of, typical_intervention
from tests.support.breaking import edit_graph, failures_of, rewrite
from tests.support.samples import HOOKS, TINY, make_sae, normal

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
TINY_SESSION = SAESession(TINY, "cpu")


def feeds_of(x, ids, scale, shift):
    return {"input": x, "feature_ids": np.asarray(ids, np.int64), "feature_scale": np.asarray(scale, np.float32),
            "feature_shift": np.asarray(shift, np.float32)}  # fmt: skip


# The rewrite

W_dec, b_dec = normal(16, 6, seed=2), normal(6, seed=3)
NODE = helper.make_node
DECODERS = {
    "a product": ([NODE("Gemm", [POST, "W_dec", "b_dec"], [RECONS])], lambda a: a @ W_dec + b_dec, True),
    "without a bias": ([NODE("Gemm", [POST, "W_dec"], [RECONS])], lambda a: a @ W_dec, True),
    "transposed weights": ([NODE("Gemm", [POST, "W_decT", "b_dec"], [RECONS], transB=1)],
                           lambda a: a @ W_dec + b_dec, True),
    "scaled": ([NODE("Gemm", [POST, "W_dec", "b_dec"], [RECONS], alpha=0.5)], lambda a: 0.5 * a @ W_dec + b_dec, True),
    "more after the product": ([NODE("Gemm", [POST, "W_dec", "b_dec"], ["p"]), NODE("Relu", ["p"], ["q"]),
                                NODE("Add", ["q", "p"], [RECONS])],
                               lambda a: np.maximum(a @ W_dec + b_dec, 0) + a @ W_dec + b_dec, True),
    "something before the product": ([NODE("Mul", [POST, POST], ["s"]),
                                      NODE("Gemm", ["s", "W_dec", "b_dec"], [RECONS])],
                                     lambda a: (a * a) @ W_dec + b_dec, False),
    "two ways of reading": ([NODE("Gemm", [POST, "W_dec", "b_dec"], ["p"]), NODE("ReduceSum", [POST, "axis"], ["s"]),
                             NODE("Add", ["p", "s"], [RECONS])],
                            lambda a: a @ W_dec + b_dec + a.sum(1, keepdims=True), True),
}  # fmt: skip


@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_is_edited_and_the_error_is_not(decoder, m):
    nodes, decode, is_update = DECODERS[decoder]
    tail = [NODE("Sub", ["input", RECONS], [ERROR]), NODE("Add", [RECONS, ERROR], [OUTPUT]),
            NODE("Identity", ["input"], [INPUT])]  # fmt: skip
    encoder = [NODE("Gemm", ["input", "W_enc"], [PRE]), NODE("Relu", [PRE], [POST])]
    arrays = {"W_enc": normal(6, 16, seed=5), "W_dec": W_dec, "W_decT": np.ascontiguousarray(W_dec.T), "b_dec": b_dec,
              "axis": np.array([1])}  # fmt: skip
    used = {name for node in (*encoder, *nodes) for name in node.input}
    graph = helper.make_graph(
        [*encoder, *nodes, *tail], "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["tokens", 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", 16 if name in (PRE, POST) else 6])
         for name in HOOKS],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    steered = ir.to_proto(add_interventions(ir.from_proto(model), runtime.read_artifact(TINY).manifest.graphs["steer"]))
    onnx.checker.check_model(steered, full_check=True)
    assert [value.name for value in steered.graph.output] == HOOKS
    products = [node.op_type for node in steered.graph.node].count("Gemm")
    assert products == 3  # the encoder, the clean decoder, and the update or the decoder once more
    assert is_update == (sum(node.op_type == "Gather" for node in steered.graph.node) == 2)

    x, ids = normal(5, 6), np.arange(m) * 5
    scale, shift = normal(1, m, seed=6), normal(5, m, seed=7)
    session = onnxruntime.InferenceSession(steered.SerializeToString())
    outputs = dict(zip(HOOKS, session.run(None, feeds_of(x, ids, scale, shift)), strict=True))
    pre = x @ arrays["W_enc"]
    clean = np.maximum(pre, 0)
    edited = clean.copy()
    edited[:, ids] = clean[:, ids] * scale + shift
    error = x - decode(clean)
    expected = [x, pre, edited, decode(edited), error, decode(edited) + error]
    for hook, y in zip(HOOKS, expected, strict=True):
        np.testing.assert_allclose(outputs[hook], y, rtol=1e-4, atol=1e-4, err_msg=hook)


# The graph, as other languages see it


def raw(ids, scale, shift, x=None):
    feeds = feeds_of(normal(5, 6) if x is None else x, ids, scale, shift)
    return onnxruntime.InferenceSession(TINY / "steer.onnx").run([POST, OUTPUT], feeds)


def test_rows_may_be_given_for_scale_and_not_for_shift():
    acts, _ = raw([2, 9], np.ones((5, 2)), [[1, 2]])
    np.testing.assert_array_equal(acts, TINY_SESSION.steer(normal(5, 6), {2: Add(1), 9: Add(2)})[1][POST])


def test_its_description_says_what_onnx_does_with_ids_that_are_wrong():
    """The description in the manifest is true."""
    words = json.loads((TINY / "sae.json").read_text())["graphs"]["steer"]["description"]
    assert "other ids make the run fail, except that -d_sae to -1 count from the end" in words
    with pytest.raises(Exception, match="out of"):
        raw([16], [[0]], [[1]])
    np.testing.assert_array_equal(raw([-1], [[0]], [[1]])[0], raw([15], [[0]], [[1]])[0])
    assert "A scale or shift that is NaN or infinite makes the whole reconstruction NaN or infinite" in words
    assert np.isnan(raw([3], [[np.nan]], [[1]])[1]).all()
    assert "for duplicates ONNX leaves acts_post undefined, and recons would get the sum of their edits" in words
    x = normal(5, 6)
    acts = TINY_SESSION.encode(x)
    twice = acts.copy()
    twice[:, 3] += 1.0 + 2.0
    np.testing.assert_allclose(raw([3, 3], [[1, 1]], [[1, 2]], x)[1] - TINY_SESSION(x),
                               TINY_SESSION.decode(twice) - TINY_SESSION.decode(acts), atol=1e-5)  # fmt: skip


def test_the_wrong_rank_is_an_error_of_the_run(session):
    with pytest.raises(SAEError, match=r"feature_scale is \(1,\) float32; 'steer' takes"):
        session.run_graph("steer", feeds_of(normal(5, 6), [3], [1], [1]))


# The intervention by which an artifact is proved


def test_the_typical_intervention_shows_in_every_kind_of_edit():
    sae = make_sae(d_in=24, d_sae=96)
    reference = reference_of(sae, normal(40, 24))
    intervention = typical_intervention(reference)
    kinds = set(zip(intervention.scale.ravel().tolist(), (intervention.shift != 0).ravel().tolist(), strict=True))
    assert kinds == {(0.0, False), (0.0, True), (0.5, False), (1.0, True)}
    acts = reference.original[POST]
    assert ((intervention(acts) != acts).any(axis=0)[intervention.ids]).all()
    least = (acts != 0).sum(axis=0).min()
    assert (acts[:, intervention.ids[-1]] != 0).sum() == least


@pytest.mark.parametrize("d_sae", [1, 3, 8, 9])
def test_small_saes_are_proved_with_an_intervention_too(tmp_path, d_sae):
    path = export(make_sae(d_sae=d_sae), tmp_path / "sae").path
    with SAESession(path, "cpu") as session:
        steered = steered_reference_of(make_sae(d_sae=d_sae), reference_of(make_sae(d_sae=d_sae), normal(5, 6)),
                                       Intervention([0], 3.0, 1.0))  # fmt: skip
        assert judge_session(session, steered).failures == []


def test_the_golden_intervention_is_verified_with_a_row_for_all_tokens_and_with_one_for_each(monkeypatch, tmp_path):
    shapes = []
    run_graph = SAESession.run_graph

    def note(self, graph, feeds, names=None):
        if graph == "steer":
            shapes.append(feeds["feature_scale"].shape)
        return run_graph(self, graph, feeds, names)

    monkeypatch.setattr(SAESession, "run_graph", note)
    export(make_sae(), tmp_path / "sae", normal(40, 6))
    # With the edits, of each token its own, and with none; but one token at once, and one; twice, at export.
    assert shapes == 2 * [(39, 8), (1, 8), (1, 8), (1, 8)]


@pytest.mark.parametrize("name", ["acts_post", "recons", "output"])
def test_a_changed_golden_value_of_the_intervention_is_seen(artifact, capsys, name):
    def change(path):
        tensors = load_file(path)
        values = tensors[f"steered.hook_sae_{name}"]
        if name == "recons":
            values[2, [3, 4]] = values[2, [4, 3]]  # the scale of the token stays
        else:
            values[2, 3] += 1e-3
        save_file(tensors, path)

    rewrite(artifact, "golden.safetensors", change)
    assert f"steer: hook_sae_{name}: the element error" in failures_of(artifact, capsys)


def test_a_golden_intervention_that_is_missing(artifact):
    def change(path):
        tensors = load_file(path)
        del tensors["feature_scale"]
        save_file(tensors, path)

    rewrite(artifact, "golden.safetensors", change)
    with pytest.raises(IntegrityError, match="has no tensor feature_scale"):
        runtime.verify(artifact, "cpu")


def node_of(model, op_type, output=None):
    return next(n for n in model.graph.node if n.op_type == op_type and (output is None or n.output[0] == output))


def error_of_the_edited_pass(model):
    node_of(model, "Sub", ERROR).input[1] = RECONS


def shifted_of(model):
    """Return the last node of the edit, `activation * scale + shift`."""
    return next(node for node in model.graph.node if node.op_type == "Add" and "feature_shift" in node.input)


def scale_and_shift_swapped(model):
    shifted = shifted_of(model)
    node_of(model, "Mul").input[1], shifted.input[1] = "feature_shift", "feature_scale"


def clean_activations_shown(model):
    node_of(model, "ScatterElements").op_type = "Identity"
    del node_of(model, "Identity", POST).input[1:], node_of(model, "Identity", POST).attribute[:]


def update_left_out(model):
    node = node_of(model, "Gemm", RECONS)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("alpha", 0.0))


def edits_of_the_first_token_for_all(model):
    for node in list(model.graph.node):
        for i, name in enumerate(node.input):
            if name in ("feature_scale", "feature_shift"):
                node.input[i] = f"first_{name}"
    for name in ("feature_scale", "feature_shift"):
        model.graph.node.insert(0, helper.make_node("Slice", [name, "zero", "one", "zero"], [f"first_{name}"]))
    for name, value in (("zero", 0), ("one", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))


def update_of_the_whole_value(model):
    node = node_of(model, "Gemm", RECONS)
    node.input[0] = shifted_of(model).output[0]  # the edited activations, not their change


@pytest.mark.parametrize(
    ("change", "hooks"),
    [
        (error_of_the_edited_pass, [ERROR, OUTPUT]),
        (scale_and_shift_swapped, [POST, RECONS, OUTPUT]),
        (clean_activations_shown, [POST]),
        (update_left_out, [RECONS, OUTPUT]),
        (update_of_the_whole_value, [RECONS, OUTPUT]),
        (edits_of_the_first_token_for_all, [POST, RECONS, OUTPUT]),
    ],
)
def test_a_graph_that_steers_wrongly(artifact, capsys, change, hooks):
    rewrite(artifact, "steer.onnx", edit_graph(change))
    said = failures_of(artifact, capsys)
    assert {line.split(": ")[1] for line in said.splitlines()} == set(hooks)
    assert all(line.startswith("steer: ") for line in said.splitlines())


def test_the_budget_under_an_intervention_is_calibrated_by_both_passes():
    sae = make_sae(d_in=24, d_sae=96)
    clean = reference_of(sae, normal(32, 24))
    steered = steered_reference_of(sae, clean, Intervention(np.arange(96), 0.0, 0.0))
    assert steered.errors(RECONS, steered.original[RECONS]).token == 0.0  # b_dec, exactly
    assert steered.own_errors(RECONS) == clean.own_errors(RECONS)
    assert (steered.scale(RECONS) > clean.scale(RECONS)).all()
    np.testing.assert_array_equal(steered.scale(POST), clean.scale(POST))

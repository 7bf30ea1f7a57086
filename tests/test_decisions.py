"""Near a threshold a correct program decides either way; the proof follows it there, and only there."""

import shutil

import numpy as np
import pytest
import torch
from breaking import edit_graph, rewrite
from conftest import HOOKS, normal
from onnx import TensorProto, helper, load_model, numpy_helper, save_model
from zoo import D_IN, sae_of

import runtime
import saeexport
from runtime.contracts import contracts_of
from runtime.decisions import deciding, following
from runtime.dtypes import rounded
from runtime.judge import judge
from runtime.parity import CHANCE, FACTOR
from saeexport import export
from saeexport.decisions import stages_of
from saeexport.exportable import in_dtype
from saeexport.truth import reference_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
DECIDING = ["jumprelu", "topk", "abstopk", "gated"]


def at_a_threshold(architecture, token, distance):
    """Return an SAE, inputs, and a feature of which the preactivation lies `distance` off a threshold for `token`."""
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


# The truth, and what is uncertain


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
        both = sorted([reference.truth[POST][7, feature], reference.other[7, feature]])
        assert both[0] == 0
        assert both[1] == pytest.approx(reference.truth[PRE][7, feature], rel=1e-12)


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
    size = np.where(reference.truth[POST] != 0, reference.truth[POST], reference.other)[reference.is_uncertain]
    np.testing.assert_allclose(size, acts_pre[reference.is_uncertain], rtol=1e-6 if dtype == "float32" else 0.02)


@pytest.mark.parametrize("architecture", DECIDING)
@pytest.mark.parametrize("tokens", [slice(None), [7, 7, 7]], ids=["some", "all"])
def test_tokens_at_a_threshold_are_proved_too(tmp_path, architecture, tokens):
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
    assert failures(outputs, reference)  # not followed
    assert failures(outputs, following(reference, outputs, stages)) == []
    # A graph that does not show its acts_pre is explained by one that is near.
    assert failures({POST: outputs[POST]}, following(reference, {POST: outputs[POST]}, stages), [POST]) == []
    # The same activations are wrong if its acts_pre says otherwise,
    shown = {PRE: reference.original[PRE], POST: outputs[POST]}
    assert f"feature {feature} of token 7" in "".join(failures(shown, following(reference, shown, stages)))
    # or if no acts_pre that is near says so.
    last = np.argmax(np.where(outputs[POST][8] != 0, np.abs(outputs[POST][8]), -1))
    outputs[POST][8, last] = 0
    assert f"feature {last} of token 8 is off" in "".join(failures(
        {POST: outputs[POST]}, following(reference, {POST: outputs[POST]}, stages), [POST]))  # fmt: skip


def test_what_is_half_on_at_a_threshold_is_wrong():
    """Both decisions are right, and nothing between them."""
    sae, x, feature = at_a_threshold("gated", 7, 1e-7)
    reference = reference_of(sae, x)
    stages = stages_of(sae, reference)
    for part, passes in ((0.0, True), (1.0, True), (0.5, False)):
        outputs = {PRE: reference.original[PRE], POST: reference.original[POST].copy()}
        outputs[POST][7, feature] = part * reference.original[PRE][7, feature]
        assert (not failures(outputs, following(reference, outputs, stages))) == passes


# Artifacts that decide wrongly


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return a function that exports an SAE of an architecture, far from zero if asked, into a folder, once."""
    parent = tmp_path_factory.mktemp("originals")

    def original(architecture, dtype, offset):
        path = parent / f"{architecture}-{dtype}-{offset}"
        if not path.exists():
            sae, far = sae_of(architecture, d_sae=256, use_error_term=True), offset * normal(D_IN, seed=9)
            with torch.no_grad():
                sae.b_dec += torch.from_numpy(far)
            export(sae, path, far + normal(128, D_IN), dtype=dtype)
        return path

    return original


@pytest.fixture
def exported(originals, tmp_path):
    """Return a function that does, and gives a copy that may be changed."""

    def exported(architecture, dtype, offset=0.0):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return shutil.copytree(originals(architecture, dtype, offset), folder)

    return exported


def with_weight(name, change):
    """Return an edit of a graph that holds another weight than its file, if it has it."""

    def on_file(path):
        model = load_model(path)
        for tensor in model.graph.initializer:
            if tensor.name == name:
                values = change(numpy_helper.to_array(tensor).astype(np.float32))
                kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), name))
        save_model(model, path)

    return on_file


def with_k(model, by):
    for node in model.graph.node:
        for tensor in model.graph.initializer:
            if node.op_type == "TopK" and tensor.name == node.input[1]:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + by, tensor.name))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "in one graph"])
def test_a_threshold_or_k_that_is_a_little_wrong_is_seen(exported, dtype, everywhere):
    graphs = contracts_of(dtype) if everywhere else ["model" if dtype == "float32" else "model.wide"]
    path = exported("jumprelu", dtype)
    for graph in graphs:
        rewrite(path, f"{graph}.onnx", with_weight("threshold", lambda values: values * 1.01))
    assert any(POST in failure for failure in runtime.verify(path, "cpu").failures)
    for by in (-1, 1):
        path = exported("topk", dtype)
        for graph in graphs:
            rewrite(path, f"{graph}.onnx", edit_graph(lambda model, by=by: with_k(model, by)))
        assert any(POST in failure for failure in runtime.verify(path, "cpu").failures)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("offset", np.float32([0, 30]), ids=["near zero", "far from zero"])
@pytest.mark.parametrize("change", [
    lambda bias: bias * 0 + 1e3, lambda bias: bias * 0 - 1e3, lambda bias: bias - 0.05, lambda bias: bias[::-1],
], ids=["open", "closed", "shifted", "shuffled"])  # fmt: skip
def test_a_wrong_gate_is_seen(exported, dtype, offset, change):
    path = exported("gated", dtype, offset)
    assert runtime.verify(path, "cpu").failures == []
    rewrite(path, "model.wide.onnx", with_weight("b_gate", change))
    assert any(f"model.wide: {POST}" in failure for failure in runtime.verify(path, "cpu").failures)


def test_the_gates_that_may_decide_otherwise_are_counted(exported):
    clean = runtime.golden.load_golden(runtime.read_artifact(exported("gated", "bfloat16"))).clean
    assert clean.most_swapped == FACTOR * clean.flips.sum() + CHANCE
    near = clean.is_uncertain & (clean.truth[POST] == 0)
    outputs = {POST: clean.original[POST].copy()}
    for count, passes in ((int(clean.most_swapped), True), (int(clean.most_swapped) + 1, False)):
        where = tuple(index[:count] for index in np.nonzero(near))
        assert len(where[0]) == count
        outputs[POST][where] = rounded(clean.other[where], "bfloat16")
        found = failures(outputs, deciding(clean, outputs[POST]), [POST])
        assert (found == []) == passes
    assert f"{count} features near the threshold of a gate are on in one and off in the other" in found[0]


def ramp(model, width):
    """Replace the jump of a JumpReLU by a ramp."""
    graph = model.graph
    for node in list(graph.node):
        if node.op_type != "Greater":
            continue
        cast = next(other for other in graph.node if node.output[0] in other.input)
        name = cast.output[0]
        for constant, value in (("slope", 0.5 / width), ("half", 0.5), ("zero", 0.0), ("one", 1.0)):
            graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name}.{constant}"))
        nodes = [
            helper.make_node("Cast", [node.input[0]], [f"{name}.pre"], to=TensorProto.FLOAT),
            helper.make_node("Cast", [node.input[1]], [f"{name}.threshold"], to=TensorProto.FLOAT),
            helper.make_node("Sub", [f"{name}.pre", f"{name}.threshold"], [f"{name}.over"]),
            helper.make_node("Mul", [f"{name}.over", f"{name}.slope"], [f"{name}.steep"]),
            helper.make_node("Add", [f"{name}.steep", f"{name}.half"], [f"{name}.centred"]),
            helper.make_node("Clip", [f"{name}.centred", f"{name}.zero", f"{name}.one"], [f"{name}.ramp"]),
            helper.make_node("Cast", [f"{name}.ramp"], [name], to=cast.attribute[0].i),
        ]
        at = list(graph.node).index(cast)
        graph.node.remove(cast)
        for i, made in enumerate(nodes):
            graph.node.insert(at + i, made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_ramp_instead_of_a_jump_is_seen(exported, dtype):
    path = exported("jumprelu", dtype)
    rewrite(path, "model.wide.onnx", edit_graph(lambda model: ramp(model, 0.02)))
    assert any(f"model.wide: {POST}" in failure for failure in runtime.verify(path, "cpu").failures)


# Artifacts that decide otherwise, and rightly


def bias_added_after_rounding(model):
    """Round the encoder's product before its bias is added, as PyTorch does."""
    graph, half = model.graph, model.graph.input[0].type.tensor_type.elem_type
    encoders = {node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] == "W_enc"}
    for node in [n for n in graph.node if n.op_type == "Gemm" and n.input[1] in encoders and len(n.input) == 3]:
        x, matrix, bias = node.input
        nodes = [
            helper.make_node("MatMul", [x, matrix], ["product"]),
            helper.make_node("Cast", ["product"], ["rounded"], to=half),
            helper.make_node("Cast", ["rounded"], ["widened"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["widened", bias], [node.output[0]]),
        ]
        at = list(graph.node).index(node)
        graph.node.remove(node)
        for i, made in enumerate(nodes):
            graph.node.insert(at + i, made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "abstopk"])
@pytest.mark.parametrize("graphs", [["steer"], ["model"], ["features"], ["model", "encode", "steer", "features"]],
                         ids=" ".join)  # fmt: skip
def test_a_graph_that_rounds_elsewhere_is_right(exported, dtype, architecture, graphs):
    path = exported(architecture, dtype)
    before = {graph: (path / f"{graph}.wide.onnx").read_bytes() for graph in graphs}
    notes = {verdict.note for verdict in runtime.verify(path, "cpu").verdicts}
    for graph in graphs:
        rewrite(path, f"{graph}.wide.onnx", edit_graph(bias_added_after_rounding))
        assert (path / f"{graph}.wide.onnx").read_bytes() != before[graph]
    report = runtime.verify(path, "cpu")
    assert report.failures == []
    if dtype == "bfloat16":  # else by chance there may be none
        assert any("decided otherwise" in note for note in notes | {verdict.note for verdict in report.verdicts})


# What cannot be judged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_that_is_broken_is_reported_with_all_that_is_held_to_it(exported, dtype):
    suffix = ".sparse" if dtype == "float32" else ".wide"
    path = exported("jumprelu", dtype)
    rewrite(path, f"encode{'' if dtype == 'float32' else suffix}.onnx", lambda file: file.write_bytes(b"no graph"))
    report = runtime.verify(path, "cpu")
    (problem,) = report.problems
    assert problem.startswith(f"encode{'' if dtype == 'float32' else suffix}: ONNX Runtime")
    assert {f"model{suffix}", f"decode{suffix}"} <= {verdict.graph for verdict in report.verdicts}
    activate = "activate" if dtype == "float32" else "activate.wide"

    def infinite(model):
        next(node for node in model.graph.node if node.op_type == "Mul").op_type = "Div"

    rewrite(path, f"{activate}.onnx", edit_graph(infinite))
    report = runtime.verify(path, "cpu")
    assert any(f"model{suffix}: {activate} gave a hook_sae_acts_post that is not finite" in p for p in report.problems)
    assert any(failure.startswith(f"{activate}: {POST}: it is") for failure in report.failures)

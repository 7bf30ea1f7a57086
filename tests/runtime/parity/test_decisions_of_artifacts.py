"""Artifacts that decide wrongly near thresholds fail, and those that decide differently but correctly pass."""

import shutil

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import runtime
from runtime.arrays.dtypes import rounded
from runtime.artifact.budgets import FACTOR
from runtime.artifact.contracts import contracts_of
from runtime.parity.decisions import adopt_decisions
from runtime.parity.judge import judge
from runtime.parity.reference import ALLOWED_CHANCE_FLIPS
from saeexport import export
from saeexport.original.exportable import in_dtype
from tests.support.breaking import edit_graph, rewrite, with_weight
from tests.support.samples import HOOKS, normal
from tests.support.zoo import D_IN, sae_of

PRE, POST = HOOKS[1:3]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return a function that exports an SAE of an architecture once. `offset` moves its inputs away from zero."""
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
    """Return a function that does the same, and returns a copy that may be changed."""

    def exported(architecture, dtype, offset=0.0):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return shutil.copytree(originals(architecture, dtype, offset), folder)

    return exported


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


@pytest.mark.parametrize(("dtype", "r_mag"), [("bfloat16", -2.0), ("float16", -6.0)])
def test_a_gate_of_a_feature_with_a_small_factor_is_seen(tmp_path, dtype, r_mag):
    """Its preactivation hardly shows the product that opens the gate."""
    sae = sae_of("gated")
    with torch.no_grad():
        sae.r_mag[5], sae.b_mag[5], sae.b_gate[5] = r_mag, 1.0, -1.0
    path = export(sae, tmp_path / "sae", normal(1000, D_IN), dtype=dtype).path
    assert runtime.verify(path, "cpu").failures == []
    for graph in contracts_of(dtype):  # the feature is never on
        rewrite(
            path, f"{graph}.onnx", with_weight("b_gate", lambda bias: np.where(np.arange(len(bias)) == 5, -9, bias))
        )
    assert any(POST in failure for failure in runtime.verify(path, "cpu").failures)


def test_the_gates_that_may_decide_differently_are_counted(exported):
    clean = runtime.parity.golden.load_golden(runtime.read_artifact(exported("gated", "bfloat16"))).clean
    assert clean.max_flipped == FACTOR * clean.flips.sum() + ALLOWED_CHANCE_FLIPS
    near = clean.is_uncertain & (clean.truth[POST] == 0)
    outputs = {POST: clean.original[POST].copy()}
    for count, passes in ((int(clean.max_flipped), True), (int(clean.max_flipped) + 1, False)):
        where = tuple(index[:count] for index in np.nonzero(near))
        assert len(where[0]) == count
        outputs[POST][where] = rounded(clean.truth[PRE][where], "bfloat16")
        found = judge("encode", [POST], outputs, adopt_decisions(clean, outputs[POST]))[0].failures
        assert (found == ()) == passes
    assert f"{count} gates near their threshold decide differently from the original; rounding explains" in found[0]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_wrong_k_is_seen_where_each_feature_has_a_copy(tmp_path, by):
    """Every feature ties with its copy for the last place, and the number of features that are on does not change."""
    sae = sae_of("topk")
    with torch.no_grad():
        for name in ("W_enc", "b_enc"):
            parameter = getattr(sae, name)
            parameter[..., 24:] = parameter[..., :24]
    path = export(sae, tmp_path / "sae", normal(64, D_IN)).path
    for graph in contracts_of("float32"):
        rewrite(path, f"{graph}.onnx", edit_graph(lambda model: with_k(model, by)))
    assert any(f"activate: {POST}" in failure for failure in runtime.verify(path, "cpu").failures)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_the_threshold_itself_one_decision_is_right(tmp_path, dtype):
    """This also holds if another feature with the same preactivation is on."""
    sae, x = sae_of("jumprelu"), normal(64, D_IN)
    with torch.no_grad():
        for name in ("W_enc", "b_enc"):
            parameter = getattr(sae, name)
            parameter[..., 1] = parameter[..., 0]
    halved = in_dtype(sae, dtype)
    with torch.no_grad():
        halved.threshold[0] = halved.preactivations(torch.from_numpy(x).to(halved.W_enc.dtype))[:, 0].max()
        halved.threshold[1] = halved.threshold[0] / 2
    path = export(halved, tmp_path / "sae", x).path
    assert runtime.verify(path, "cpu").failures == []

    def not_strictly(model):
        for node in model.graph.node:
            node.op_type = "GreaterOrEqual" if node.op_type == "Greater" else node.op_type

    for graph in contracts_of(dtype):
        rewrite(path, f"{graph}.onnx", edit_graph(not_strictly))
    suffix = "" if dtype == "float32" else ".wide"
    assert any(f"activate{suffix}: {POST}" in failure for failure in runtime.verify(path, "cpu").failures)


@pytest.mark.parametrize("graph", ["activate", "encode", "acts", "features.sparse"])
def test_a_very_large_feature_does_not_hide_a_wrong_threshold(tmp_path, graph):
    sae = sae_of("jumprelu")
    sae.b_enc.data[3] = -1e9  # switches the feature off permanently
    path = export(sae, tmp_path / "sae", normal(64, D_IN)).path
    rewrite(path, f"{graph}.onnx", with_weight("threshold", lambda values: values + 5))
    assert any(failure.startswith(f"{graph}: {POST}") for failure in runtime.verify(path, "cpu").failures)


def ramp(model, width):
    """Replace the jump of a JumpReLU with a ramp."""
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


# Artifacts that decide differently but correctly


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
    if dtype == "bfloat16":  # in float16 there may be none by chance
        notes |= {verdict.note for verdict in report.verdicts}
        assert any("differing from the original" in note for note in notes)


# Outputs that cannot be judged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_that_is_broken_is_reported_with_all_that_is_held_to_it(exported, dtype):
    suffix = ".sparse" if dtype == "float32" else ".wide"
    path = exported("jumprelu", dtype)
    rewrite(path, f"encode{'' if dtype == 'float32' else suffix}.onnx", lambda file: file.write_bytes(b"no graph"))
    report = runtime.verify(path, "cpu")
    (problem,) = report.problems
    assert problem.startswith(f"encode{'' if dtype == 'float32' else suffix}: ")
    assert "is not an ONNX model" in problem
    assert {f"model{suffix}", f"decode{suffix}"} <= {verdict.graph for verdict in report.verdicts}
    activate = "activate" if dtype == "float32" else "activate.wide"

    def infinite(model):
        next(node for node in model.graph.node if node.op_type == "Mul").op_type = "Div"

    rewrite(path, f"{activate}.onnx", edit_graph(infinite))
    report = runtime.verify(path, "cpu")
    assert any(f"model{suffix}: {activate} gave a hook_sae_acts_post that is not finite" in p for p in report.problems)
    assert any(failure.startswith(f"{activate}: {POST}: it is") for failure in report.failures)

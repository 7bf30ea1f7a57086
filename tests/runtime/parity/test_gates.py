"""Defective artifacts: every check fails and names the place."""

import re
import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

import runtime
import saeexport
from runtime import ArtifactError, IntegrityError, SAESession
from runtime.artifact.contracts import CONTRACTS
from runtime.commands.main import main
from runtime.session.loading import LoadedGraphs
from tests.support.breaking import claim_weights, edit_graph, edit_weight, failures_of, rewrite
from tests.support.samples import HOOKS, TINY, make_sae, normal


def test_an_intact_artifact_passes(artifact, capsys):
    report = runtime.verify(artifact, "cpu")
    assert report.failures == []
    assert [(verdict.graph, verdict.hook) for verdict in report.verdicts] == [
        *(("model", hook) for hook in HOOKS),
        ("encode", HOOKS[1]),
        ("encode", HOOKS[2]),
        ("activate", HOOKS[2]),
        ("decode", HOOKS[3]),
        *(("steer", hook) for hook in HOOKS),
        *(("features", what) for what in (HOOKS[2], "l0", "values")),
        ("acts", HOOKS[2]),
        *(("model.sparse", hook) for hook in HOOKS),
        ("decode.sparse", HOOKS[3]),
        *(("steer.sparse", hook) for hook in HOOKS),
        *(("features.sparse", what) for what in (HOOKS[2], "l0", "values")),
    ]
    runtime.assert_parity(artifact, "cpu")
    assert main(["verify", str(artifact), "--device", "cpu"]) == 0
    assert "hook_sae_acts_pre" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.5, 1.0001], ids=["visibly", "barely"])
@pytest.mark.parametrize(("name", "hook"), [("W_enc", "acts_pre"), ("b_enc", "acts_pre"), ("W_dec", "recons"),
                                            ("b_dec", "recons")])  # fmt: skip
def test_a_changed_weight_is_seen(artifact, capsys, name, hook, factor):
    """It is detected even if the manifest and the graphs agree with the changed file. The next test is about hashes."""
    tensors = load_file(artifact / "weights.safetensors")
    golden = load_file(artifact / "golden.safetensors")
    feature = int(np.argmax(golden["hook_sae_acts_post"].max(0)))  # a W_dec row of it is used
    index = {"W_enc": (0, feature), "W_dec": (feature, 0), "b_enc": (feature,), "b_dec": (0,)}[name]
    assert abs(tensors[name][index]) > 0.01
    rewrite(artifact, "weights.safetensors", edit_weight(name, index, factor))
    claim_weights(artifact)
    said = failures_of(artifact, capsys)
    assert f"hook_sae_{hook}: the element error is" in said
    assert "Worst at" in said


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "model.onnx"])
def test_a_flipped_byte_is_seen(artifact, capsys, name):
    data = bytearray((artifact / name).read_bytes())
    data[-3] ^= 1
    (artifact / name).write_bytes(data)
    said = failures_of(artifact, capsys)
    assert name in said
    assert "was changed after the export" in said


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "decode.onnx"])
def test_a_file_that_is_truncated(artifact, capsys, name):
    data = (artifact / name).read_bytes()
    (artifact / name).write_bytes(data[:-10])
    assert f"{len(data) - 10} bytes, sae.json says {len(data)}: it is truncated" in failures_of(artifact, capsys)


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "encode.onnx"])
def test_a_file_that_is_missing(artifact, capsys, name):
    (artifact / name).unlink()
    assert f"{name} is missing. Copy the whole folder again." in failures_of(artifact, capsys)


def test_a_session_checks_what_it_loads(artifact):
    data = bytearray((artifact / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (artifact / "weights.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="was changed after the export"), SAESession(artifact, "cpu") as session:
        session(normal(6))
    with SAESession(artifact, "cpu", check_integrity=False) as session:
        session(normal(6))


def test_a_changed_golden_value_is_seen(artifact, capsys):
    def change(path):
        tensors = load_file(path)
        recons = tensors["hook_sae_recons"]
        recons[2, [3, 4]] = recons[2, [4, 3]]  # the scale of the token stays
        save_file(tensors, path)

    rewrite(artifact, "golden.safetensors", change)
    assert "hook_sae_recons: the element error" in failures_of(artifact, capsys)


def test_a_golden_tensor_that_is_missing(artifact):
    def change(path):
        tensors = load_file(path)
        del tensors["residual.hook_sae_error"]
        save_file(tensors, path)

    rewrite(artifact, "golden.safetensors", change)
    with pytest.raises(IntegrityError, match=r"has no tensor residual.hook_sae_error"):
        runtime.verify(artifact, "cpu")


def test_a_graph_of_another_sae(artifact, capsys, tmp_path):
    other = saeexport.export(make_sae(hook_name="blocks.0.attn.hook_z", seed=7), tmp_path / "other").path
    rewrite(artifact, "model.onnx", lambda path: shutil.copy(other / "model.onnx", path))
    said = failures_of(artifact, capsys)
    assert "model.onnx was exported for other weights" in said
    assert "encode" not in said


def test_a_graph_with_other_sizes(artifact, capsys, tmp_path):
    other = saeexport.export(make_sae(d_sae=17), tmp_path / "other").path
    shutil.copy(other / "weights.safetensors", artifact / "weights.safetensors")
    rewrite(artifact, "weights.safetensors", lambda path: None)
    for graph in CONTRACTS:
        rewrite(artifact, f"{graph}.onnx", lambda path: shutil.copy(other / path.name, path))
    assert "encode.onnx has the outputs hook_sae_acts_pre float32 ['tokens', 17]" in failures_of(artifact, capsys)


def swap(model):
    """Exchange the values of two outputs."""
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = {HOOKS[3]: HOOKS[4], HOOKS[4]: HOOKS[3]}.get(name, name)
        for i, name in enumerate(node.input):
            node.input[i] = {HOOKS[3]: HOOKS[4], HOOKS[4]: HOOKS[3]}.get(name, name)


def rename(model):
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = name.replace("hook_sae_error", "hook_error")
        for i, name in enumerate(node.input):
            node.input[i] = name.replace("hook_sae_error", "hook_error")
    model.graph.output[4].name = "hook_error"


def drop(model):
    del model.graph.output[4]


def add(model):
    model.graph.node.append(helper.make_node("Neg", ["input"], ["hook_extra"]))
    model.graph.output.append(helper.make_tensor_value_info("hook_extra", TensorProto.FLOAT, ["tokens", 6]))


def reorder(model):
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([outputs[1], outputs[0], *outputs[2:]])


def retype(model):
    for node in model.graph.node:
        if HOOKS[4] in node.output:
            node.output[0] = "narrow"
    model.graph.node.append(helper.make_node("Cast", ["narrow"], [HOOKS[4]], to=TensorProto.DOUBLE))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == HOOKS[4]:
                node.input[i] = "narrow"
    model.graph.output[4].type.tensor_type.elem_type = TensorProto.DOUBLE


def poison(model):
    for node in model.graph.node:
        if HOOKS[4] in node.output:
            node.op_type = "Div"  # recons / recons is 1 for most, input / recons is far from the error
            node.input[0] = "nan"
    nan = helper.make_tensor("nan", TensorProto.FLOAT, [1], [np.nan])
    model.graph.initializer.append(nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "hook_sae_recons: the token error"),
        (rename, "hook_error float32"),
        (drop, "has the outputs"),
        (add, "hook_extra float32"),
        (reorder, r"has the outputs hook_sae_acts_pre float32 \['tokens', 16\], hook_sae_input"),
        (retype, r"hook_sae_error float64 \['tokens', 6\]"),
        (poison, "hook_sae_error: it is nan at"),
    ],
)
def test_outputs_that_are_not_those_of_the_contract(artifact, capsys, change, message):
    rewrite(artifact, "model.onnx", edit_graph(change))
    assert re.search(message, failures_of(artifact, capsys))


@pytest.mark.parametrize("location", ["../outside.bin", "ABSOLUTE"])
def test_external_data_outside_the_folder_is_refused(artifact, location):
    outside = artifact.parent / "outside.bin"
    shutil.copy(artifact / "weights.safetensors", outside)
    location = str(outside) if location == "ABSOLUTE" else location

    def change(model):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    rewrite(artifact, "encode.onnx", edit_graph(change))
    with (
        pytest.raises(ArtifactError, match="encode.onnx keeps W_enc in .*outside.bin', and not in weights.safetensors"),
        SAESession(artifact, "cpu") as session,
    ):
        session.compute(normal(6), HOOKS[1:3])


def test_a_graph_that_is_not_onnx(artifact):
    rewrite(artifact, "encode.onnx", lambda path: path.write_bytes(b"no model"))
    with (
        pytest.raises(ArtifactError, match="encode.onnx is not an ONNX model: "),
        SAESession(artifact, "cpu") as session,
    ):
        session.compute(normal(6), HOOKS[1:3])


# The basis of the verdicts


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda hooks: {name: y for name, y in hooks.items() if name != HOOKS[2]},
            "hook_sae_acts_post: the output is missing",
        ),
        (lambda hooks: {**hooks, "hook_mlp_out": hooks[HOOKS[1]]}, "hook_mlp_out: there should be no such output"),
        (lambda hooks: dict(reversed(hooks.items())), "outputs are hook_sae_output, hook_sae_error"),
    ],
)
def test_verify_judges_every_output_that_the_graph_gives(monkeypatch, spoil, message):
    """The verdicts do not rely on the session's own check of the names."""
    run_graph = SAESession.run_graph

    def wrong(self, graph, feeds, names=None):
        hooks = run_graph(self, graph, feeds, names)
        return spoil(hooks) if graph == "model" else hooks

    monkeypatch.setattr(SAESession, "run_graph", wrong)
    assert message in "\n".join(runtime.verify(TINY, "cpu").failures)


def test_nothing_is_run_that_is_not_intact(artifact):
    (artifact / "decode.onnx").unlink()
    for verify in (runtime.verify, saeexport.verify):
        report = verify(artifact, device="cpu")
        assert [problem for problem in report.failures if "decode.onnx is missing" in problem] == report.failures
        assert report.failures
        assert not report.verdicts


def test_the_tiny_artifact_is_what_these_tests_break():
    assert runtime.verify(TINY, "cpu").failures == []


def test_verification_holds_one_copy_of_the_weights_at_a_time(monkeypatch):
    """Only `activate`, which has no matrix, stays loaded beside the graph that runs. Each graph is loaded once."""
    load, loads, loaded = LoadedGraphs._load, [], []

    def note(self, graph):
        loads.append(graph)
        loaded.append({graph, *self.loaded} - {"activate"})
        return load(self, graph)

    monkeypatch.setattr(LoadedGraphs, "_load", note)
    assert runtime.verify(TINY, "cpu").failures == []
    assert sorted(loads) == sorted(CONTRACTS)
    assert max(map(len, loaded)) == 1


@pytest.mark.parametrize(("graph", "output"), [("encode", HOOKS[1]), ("activate", HOOKS[2]), ("decode", HOOKS[3]),
                                               ("acts", HOOKS[2]), ("decode.sparse", HOOKS[3])])  # fmt: skip
def test_a_graph_that_is_wrong_for_a_single_token(artifact, capsys, graph, output):
    """A service may call a graph with a single token."""

    def doubled_if_alone(model):
        node = next(node for node in model.graph.node if output in node.output)
        node.output[list(node.output).index(output)] = "right"
        for other in model.graph.node:
            other.input[:] = ["right" if name == output else name for name in other.input]
        model.graph.node.extend([
            helper.make_node("Shape", [model.graph.input[0].name], ["count"], start=0, end=1),
            helper.make_node("Equal", ["count", "single"], ["alone"]),
            helper.make_node("Cast", ["alone"], ["one_if_alone"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["right", "one_if_alone"], ["more"]),
            helper.make_node("Add", ["right", "more"], [output]),
        ])  # fmt: skip
        model.graph.initializer.append(helper.make_tensor("single", TensorProto.INT64, [1], [1]))

    rewrite(artifact, f"{graph}.onnx", edit_graph(doubled_if_alone))
    assert f"{graph}: {output}: the token error" in failures_of(artifact, capsys)

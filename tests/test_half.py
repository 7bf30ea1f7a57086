"""Artifacts in half precision: proved against the original in that dtype, and what they lose is said."""

import dataclasses
import importlib

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from breaking import edit_graph, failures_of, rewrite
from conftest import HOOKS, TINY, make_sae, normal
from onnx import helper
from safetensors import safe_open
from safetensors.torch import load_file
from zoo import ARCHITECTURES, D_IN, sae_of, target_of

import runtime
import saeexport
from runtime import ParityError, SAESession
from runtime.__main__ import main
from runtime.contracts import HALF_CONTRACTS, PORTABLE
from runtime.dtypes import rounded
from runtime.fidelity import features_of
from runtime.judge import judge
from runtime.parity import FLOOR
from runtime.verify import feed_of
from saeexport import ExportError, export, graphs
from saeexport.cli import main as saeexport_main
from saeexport.truth import reference_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
HALVES = ["float16", "bfloat16"]
exporting = importlib.import_module("saeexport.export")  # the package has the function under this name
write_weights = exporting._write_weights


@pytest.fixture(params=HALVES)
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=HALVES)
def half(request, tmp_path_factory):
    """A folder with an artifact of each architecture in half precision; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    for name in ARCHITECTURES:
        sae = sae_of(name, use_error_term=True)
        export(sae, folder / name, normal(60, D_IN), targets=target_of(sae, 60), dtype=request.param)
    return request.param, folder


@pytest.fixture
def artifact(tmp_path, dtype):
    """An artifact in half precision, to be broken."""
    return export(make_sae(), tmp_path / "sae", normal(50, 6), dtype=dtype).path


def run(path, x):
    """Return the hooks that an artifact in half precision computes on a CPU, as numbers."""
    with SAESession(path, "cpu") as session:
        hooks = session.compute(feed_of(x, session.cfg.dtype), session.hook_names)
        return {name: np.asarray(y) for name, y in hooks.items()}


# What is written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_proved_in_half_precision(half, architecture):
    dtype, folder = half
    report = runtime.verify(folder / architecture, "cpu")
    assert report.failures == []
    graphs = {verdict.graph for verdict in report.verdicts}
    assert graphs == {f"{name}.wide" for name in PORTABLE}
    manifest = runtime.read_artifact(folder / architecture).manifest
    assert (manifest.sae.dtype, manifest.weights_dtype) == (dtype, dtype)
    assert list(manifest.graphs) == list(HALF_CONTRACTS)
    assert {tensor.dtype for spec in manifest.graphs.values() for tensor in spec.outputs} == {dtype, "int64"}


@pytest.mark.parametrize("architecture", ["standard", "topk", "skip_transcoder"])
def test_it_is_its_own_checkpoint(half, architecture):
    dtype, folder = half
    sae = saeexport.load(folder / architecture)
    assert sae.cfg.dtype == getattr(torch, dtype)
    original = sae_of(architecture, use_error_term=True).to(sae.cfg.dtype).state_dict()
    assert all(torch.equal(tensor.cpu(), original[name]) for name, tensor in sae.state_dict().items())
    saeexport.assert_parity(folder / architecture, sae, device="cpu")
    saeexport.assert_parity(folder / architecture, device="cpu")


def test_the_weights_are_half_and_graphs_point_to_them(artifact, dtype):
    with safe_open(artifact / "weights.safetensors", "np") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {{"float16": "F16", "bfloat16": "BF16"}[dtype]}
    for name in HALF_CONTRACTS:
        for tensor in onnx.load_model(artifact / f"{name}.onnx", load_external_data=False).graph.initializer:
            assert tensor.name.startswith("constant.") or tensor.data_location == onnx.TensorProto.EXTERNAL


def test_head_shaped_saes(tmp_path, dtype):
    sae = make_sae(d_in=12, hook_name="blocks.0.attn.hook_z")
    path = export(sae, tmp_path / "sae", normal(20, 3, 4), head_shape=(3, 4), dtype=dtype).path
    assert run(path, normal(5, 3, 4))[OUTPUT].shape == (5, 3, 4)


def test_the_same_bytes_come_out_twice(tmp_path):
    one, two = (export(make_sae(), tmp_path / name, normal(40, 6), dtype="bfloat16").path for name in "ab")
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_export_leaves_the_sae_as_it_was(tmp_path):
    sae = make_sae()
    export(sae, tmp_path / "sae", dtype="float16")
    assert sae.cfg.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), make_sae().parameters(), strict=True))


def test_golden_numbers_are_those_of_the_dtype_and_any_reader_can_read_them(artifact, dtype):
    golden = load_file(artifact / "golden.safetensors")
    for hook in HOOKS:
        assert golden[hook].dtype == (torch.float16 if dtype == "float16" else torch.float32)
        assert torch.equal(golden[hook].to(getattr(torch, dtype)).float(), golden[hook].float())


# Rounding


def test_every_operator_is_rounded(artifact, dtype):
    """ONNX Runtime's optimiser keeps the casts that round: the sums hold exactly in the dtype."""
    x = rounded(normal(200, 6), dtype)
    hooks = run(artifact, x)
    for hook in HOOKS:
        np.testing.assert_array_equal(hooks[hook], rounded(hooks[hook], dtype), err_msg=hook)
    np.testing.assert_array_equal(hooks[ERROR], rounded(x - hooks[RECONS], dtype))
    np.testing.assert_array_equal(hooks[OUTPUT], rounded(hooks[RECONS] + hooks[ERROR], dtype))
    assert (hooks[OUTPUT] != x).any()  # else nothing of this was shown


def test_the_decoder_reads_rounded_activations(tmp_path, dtype):
    sae = make_sae()
    path = export(sae, tmp_path / "sae", normal(50, 6), dtype=dtype).path
    hooks = run(path, rounded(normal(200, 6), dtype))
    state = {
        name: rounded(tensor.detach().numpy(), dtype).astype(np.float64) for name, tensor in sae.named_parameters()
    }
    recons = hooks[POST].astype(np.float64) @ state["W_dec"] + state["b_dec"]
    # One rounding of the result, and those of a product in float32.
    np.testing.assert_allclose(hooks[RECONS], recons, rtol=1.01 * FLOOR[dtype], atol=1e-6)


@pytest.mark.parametrize("name", ["model", "steer", "features", "decode"])
def test_portable_graphs_say_what_their_twins_compute(half, name):
    """In the evaluator of the ONNX package, operator by operator; no device here computes in half precision."""
    dtype, folder = half
    path = folder / "jumprelu"
    steered = runtime.golden.load_golden(runtime.read_artifact(path))
    feeds = {"input": steered.original[INPUT], POST: steered.clean.original[POST], "k": np.array([20])}
    with SAESession(path, "cpu") as session:
        feeds = {k: feed_of(v, dtype) if k != "k" else v for k, v in feeds.items()}
        feeds |= steered.intervention.feeds((steered.tokens,), dtype)
        feeds = {tensor.name: feeds[tensor.name] for tensor in session.artifact.manifest.graphs[name].inputs}
        expected = {k: np.asarray(v) for k, v in session.run_graph(f"{name}.wide", feeds).items()}
    model = onnx.load_model(path / f"{name}.onnx", load_external_data=True)
    kind = helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, dtype.upper()))
    floats = {
        k: np.asarray(v) if np.asarray(v).dtype == np.int64 else np.asarray(v).astype(kind) for k, v in feeds.items()
    }
    found = onnx.reference.ReferenceEvaluator(model).run(None, floats)
    for (hook, y), other in zip(expected.items(), found, strict=True):
        if hook not in ("indices",):
            size = max(1.0, float(np.abs(y).max()))
            np.testing.assert_allclose(other.astype(np.float64), y, rtol=0, atol=20 * FLOOR[dtype] * size, err_msg=hook)


def test_portable_graphs_keep_to_what_cuda_has_in_bfloat16(half):
    dtype, folder = half
    if dtype != "bfloat16":
        pytest.skip("float16 has every operator")
    for architecture in ARCHITECTURES:
        for name in PORTABLE:
            model = onnx.load_model(folder / architecture / f"{name}.onnx", load_external_data=False)
            graph = onnx.shape_inference.infer_shapes(model).graph
            values = [*graph.input, *graph.output, *graph.value_info]
            halves = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16}
            halves |= {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.BFLOAT16}
            ops = {node.op_type for node in graph.node if halves & {*node.input, *node.output}}
            assert ops <= {"Add", "Cast", "Gather", "Gemm", "Identity", "Mul", "Relu", "Reshape", "ScatterElements",
                           "Shape", "Sub", "MatMul"}  # fmt: skip


# What is lost


def test_fidelity_to_float32_is_measured_and_said(tmp_path, dtype, capsys):
    sae, x = make_sae(d_in=24, d_sae=96), normal(80, 24)
    manifest = export(sae, tmp_path / "sae", x, dtype=dtype).manifest
    assert manifest.parity is not None
    exact = reference_of(sae, x)
    hooks = run(tmp_path / "sae", rounded(x, dtype))
    for hook, record in manifest.fidelity.hooks.items():
        assert record.artifact == exact.errors(hook, hooks[hook])
        assert FLOOR[dtype] / 8 < record.artifact.token < 50 * FLOOR[dtype]
    assert manifest.fidelity.features == features_of(exact.original[POST], hooks[POST])
    assert main(["inspect", str(tmp_path / "sae")]) == 0
    said = capsys.readouterr().out
    assert f"{dtype} weights: fidelity to float32 on 80 tokens" in said
    assert "parity at export, 80 tokens" in said


def test_a_checkpoint_in_half_precision_is_exported_as_it_is(tmp_path):
    sae = make_sae(dtype=torch.bfloat16)
    manifest = export(sae, tmp_path / "sae").manifest
    assert (manifest.sae.dtype, manifest.fidelity) == ("bfloat16", None)
    assert export(sae, tmp_path / "wide", dtype="float32").manifest.sae.dtype == "float32"


def test_the_command_line_takes_a_dtype(tmp_path, capsys):
    assert saeexport_main(["export", str(TINY), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert f"half: {len(HALF_CONTRACTS)} graphs" in said
    assert "parity in bfloat16 on" in said
    assert "\nfidelity to float32 on" in said


def test_int8_weights_of_half_precision_are_refused(tmp_path, dtype):
    with pytest.raises(ExportError, match=f"weights is 'int8' and the SAE in {dtype}"):
        export(make_sae(), tmp_path / "sae", dtype=dtype, weights="int8")


# Gates


def test_numbers_beyond_float16_are_said_to_be(tmp_path):
    sae = make_sae()
    with torch.no_grad():
        sae.W_enc *= 1000
    with pytest.raises(
        ParityError, match="hook_sae_acts_pre is .*inf.*float16 ends at 65504, .* take bfloat16, or flo"
    ):
        export(sae, tmp_path / "sae", 1000 * normal(30, 6), dtype="float16")
    with pytest.raises(ExportError, match="activations holds numbers that are not finite in float16"):
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
    """In `decode`, on the original's activations; and in `model`, against `decode` on its own."""
    path = export(sae_of(architecture, use_error_term=True), tmp_path / "sae", normal(64, D_IN), dtype=dtype).path
    steered = runtime.golden.load_golden(runtime.read_artifact(path))
    clean = steered.clean
    # As if every certain feature that is on were uncertain, and had been off in the original on every token.
    other = np.where(clean.truth[POST] != 0, clean.truth[POST], clean.other)
    off = {**clean.truth, POST: np.where(clean.other == clean.truth[POST], 0.0, clean.truth[POST])}
    undecided = dataclasses.replace(clean, truth=off, other=other)
    with SAESession(path, "cpu") as session:
        outputs = {k: np.asarray(v) for k, v in session.run_graph("model.wide", {
            "input": feed_of(clean.original[INPUT], dtype)}).items()}  # fmt: skip

        def decode(tokens, acts):
            return np.asarray(session.run_graph("decode.wide", {POST: feed_of(acts, dtype)})[RECONS])

        following = undecided.following(outputs[POST], decode)
    assert following.otherwise.all()
    assert not [f for v in judge("model", HOOKS, outputs, following) for f in v.failures if POST not in f]
    wrong = {**outputs, RECONS: rounded(outputs[RECONS] * 1.1, dtype)}
    assert any(RECONS in f for v in judge("model", HOOKS, wrong, following) for f in v.failures)
    change = edit_graph(lambda model: next(
        node for node in reversed(model.graph.node) if node.op_type == "Gemm"
    ).attribute.append(helper.make_attribute("alpha", 1.1)))  # fmt: skip
    rewrite(path, f"{stage}.wide.onnx", change)
    assert any(f"{stage}.wide: {RECONS}" in failure for failure in runtime.verify(path, "cpu").failures)


def test_a_graph_that_does_not_round_is_seen(artifact, capsys):
    """The sum of the output is taken of what was not rounded."""

    def skip_rounding(model):
        casts = {node.input[0]: node for node in model.graph.node if node.op_type == "Cast"}
        wide = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        (add,) = (node for node in model.graph.node if node.op_type == "Add")
        for i, name in enumerate(add.input):
            add.input[i] = wide[wide[name]]
        assert casts

    rewrite(artifact, "model.wide.onnx", edit_graph(skip_rounding))
    assert "they must be equal" in failures_of(artifact, capsys)


def test_a_feature_that_is_on_and_certainly_off_is_seen(half):
    _, folder = half
    for architecture in ("standard", "jumprelu", "topk"):
        clean = runtime.golden.load_golden(runtime.read_artifact(folder / architecture)).clean
        outputs = {hook: y.copy() for hook, y in clean.original.items()}
        token, feature = map(int, np.argwhere(clean.truth[PRE] < -1.0)[0])
        outputs[POST][token, feature] = 2.0**-14
        failures = [f for v in judge("encode", [POST], {POST: outputs[POST]}, clean) for f in v.failures]
        assert any(f"feature {feature} of token {token} is on" in failure for failure in failures)


def test_an_uncertain_feature_may_be_on_or_off_and_nothing_else(half):
    _, folder = half
    clean = runtime.golden.load_golden(runtime.read_artifact(folder / "topk")).clean
    token, feature = map(int, np.argwhere(clean.is_uncertain)[0])
    for value, passes in ((clean.truth[POST], True), (clean.other, True), (clean.other + clean.truth[POST] + 1, False)):
        acts = clean.original[POST].copy()
        acts[token, feature] = value[token, feature]
        assert (not judge("encode", [POST], {POST: acts}, clean)[0].failures) == passes


def test_traced_graphs_are_in_the_dtype(monkeypatch, tmp_path, dtype):
    """A float32 trace behind casts would be proved as well, and run at half the speed."""
    seen = []
    trace = graphs.trace
    monkeypatch.setattr(graphs, "trace", lambda sae, config: seen.append(trace(sae, config)) or seen[-1])
    path = export(make_sae(), tmp_path / "sae", dtype=dtype).path
    assert {value.dtype.name for value in seen[0].graph.inputs} == {dtype.upper()}
    ops = [node.op_type for node in onnx.load_model(path / "model.onnx", load_external_data=False).graph.node]
    assert sorted(ops) == sorted(["Sub", "Gemm", "Relu", "Gemm", "Sub", "Add", "Identity"])

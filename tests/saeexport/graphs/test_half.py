"""Artifacts in half precision: parity with the original in that dtype, and the record of what they lose."""

import dataclasses
import importlib

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import runtime
import saeexport
from runtime import SAESession
from runtime.arrays.dtypes import rounded, widened
from runtime.arrays.tensor import feed_of
from runtime.artifact.budgets import FLOOR
from runtime.artifact.contracts import HALF_CONTRACTS, PORTABLE
from runtime.commands.main import main
from runtime.parity.fidelity import features_of
from saeexport import ExportError, HookedSAE, export
from saeexport.cli import main as saeexport_main
from saeexport.graphs import write as graphs
from saeexport.proof.evaluator import HalfGraphs
from saeexport.proof.truth import reference_of
from tests.support.samples import HOOKS, TINY, make_sae, normal
from tests.support.zoo import ARCHITECTURES, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
HALVES = ["float16", "bfloat16"]
exporting = importlib.import_module("saeexport._export")
write_weights = exporting._write_weights


@pytest.fixture(params=HALVES)
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=HALVES)
def half(request, artifact_of):
    """A dtype, and the folder of an artifact of each architecture in it; not to be changed."""
    return request.param, {name: artifact_of(name, request.param, use_error_term=True).path for name in ARCHITECTURES}


@pytest.fixture
def artifact(tmp_path, dtype):
    """A copy of an artifact in half precision, for tests that break it."""
    return export(make_sae(), tmp_path / "sae", normal(50, 6), dtype=dtype).path


def run(path, x):
    """Return the hooks that an artifact in half precision computes on a CPU, as float32 arrays."""
    with SAESession(path, "cpu") as session:
        hooks = session.compute(feed_of(x, session.cfg.dtype), session.hook_names)
        return {name: widened(np.asarray(y)) for name, y in hooks.items()}


# The files


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_proved_in_half_precision(half, architecture):
    dtype, folders = half
    report = runtime.verify(folders[architecture], "cpu")
    assert report.failures == []
    graphs = {verdict.graph for verdict in report.verdicts}
    assert graphs == {f"{name}.wide" for name in PORTABLE}
    manifest = runtime.read_artifact(folders[architecture]).manifest
    assert (manifest.sae.dtype, manifest.weights_dtype) == (dtype, dtype)
    assert list(manifest.graphs) == list(HALF_CONTRACTS)
    assert {tensor.dtype for spec in manifest.graphs.values() for tensor in spec.outputs} == {dtype, "int64"}


@pytest.mark.parametrize("architecture", ["standard", "topk", "skip_transcoder"])
def test_it_is_its_own_checkpoint(half, architecture):
    dtype, folders = half
    sae = saeexport.load(folders[architecture])
    assert sae.cfg.dtype == getattr(torch, dtype)
    original = sae_of(architecture, use_error_term=True).to(sae.cfg.dtype).state_dict()
    assert all(torch.equal(tensor.cpu(), original[name]) for name, tensor in sae.state_dict().items())
    saeexport.assert_parity(folders[architecture], sae, device="cpu")
    saeexport.assert_parity(folders[architecture], device="cpu")


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


@pytest.mark.usefixtures("fresh_trace")
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
    assert (hooks[OUTPUT] != x).any()  # or the test would compare nothing


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


def decided(outputs):
    """Return which features a graph has on, as an array with a row for each token."""
    if POST in outputs:
        return outputs[POST] != 0
    return np.sort(outputs["indices"]) if "indices" in outputs else np.ones((len(outputs[RECONS]), 1))


@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize("architecture", ["jumprelu", "abstopk", "gated"])
def test_portable_graphs_compute_what_their_cpu_variants_compute(half, name, architecture):
    """The portable graphs run with casts around every operator, as no CPU provider computes in half precision."""
    dtype, folders = half
    path = folders[architecture]
    steered = runtime.parity.golden.load_golden(runtime.read_artifact(path))
    numbers = {**steered.clean.original, "input": steered.original[INPUT]}
    feeds = {name: feed_of(array, dtype) for name, array in numbers.items()} | {"k": np.array([20])}
    feeds |= steered.intervention.feeds((steered.tokens,), dtype)
    with SAESession(path, "cpu") as session:
        feeds = {tensor.name: feeds[tensor.name] for tensor in session.artifact.manifest.graphs[name].inputs}
        expected = {k: widened(np.asarray(v)) for k, v in session.run_graph(f"{name}.wide", feeds).items()}
    found = HalfGraphs().run(name, path / f"{name}.onnx", feeds)
    assert {k: (y.shape, y.dtype) for k, y in found.items()} == {k: (y.shape, y.dtype) for k, y in expected.items()}
    # The CPU variants round a product and its bias once, the portable graphs twice, as PyTorch does.
    alike = (decided(found) == decided(expected)).all(-1)
    assert alike.mean() > 0.95  # for the other tokens, rounding changed a decision
    for hook in set(expected) - {"indices"}:
        ours, theirs = found[hook].astype(np.float64), expected[hook]
        if hook == "values":  # two that are equally strong after rounding may come in either order
            ours, theirs = np.sort(ours), np.sort(theirs)
        size = max(1.0, float(np.abs(theirs).max()))
        errors = np.abs(ours - theirs)
        assert errors[alike].max() <= 20 * FLOOR[dtype] * size, hook


def test_portable_graphs_keep_to_what_cuda_has_in_bfloat16(half):
    dtype, folders = half
    if dtype != "bfloat16":
        pytest.skip("float16 has every operator")
    for architecture in ARCHITECTURES:
        for name in PORTABLE:
            model = onnx.load_model(folders[architecture] / f"{name}.onnx", load_external_data=False)
            graph = onnx.shape_inference.infer_shapes(model).graph
            values = [*graph.input, *graph.output, *graph.value_info]
            halves = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16}
            halves |= {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.BFLOAT16}
            ops = {node.op_type for node in graph.node if halves & {*node.input, *node.output}}
            assert ops <= {"Add", "Cast", "Gather", "Gemm", "Identity", "Mul", "Relu", "Reshape", "ScatterElements",
                           "Shape", "Sub", "MatMul"}  # fmt: skip


# The fidelity record


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


class Smooth(HookedSAE):
    """Its activation function casts to float32 in PyTorch, for operators that lack bfloat16."""

    def activation(self, acts_pre, x):
        return torch.sigmoid(acts_pre)


def test_a_user_s_class_with_a_config_that_cannot_be_changed(tmp_path, dtype):
    sae = Smooth(dict(d_in=6, d_sae=16, hook_name="h", seed=0, device="cpu"))
    frozen = dataclasses.make_dataclass("Frozen", [(name, type(value)) for name, value in vars(sae.cfg).items()],
                                        frozen=True)  # fmt: skip
    sae.cfg = frozen(**vars(sae.cfg))
    assert export(sae, tmp_path / "sae", normal(40, 6), dtype=dtype).manifest.sae.dtype == dtype
    assert sae.cfg.dtype == torch.float32


def test_mixed_dtypes_have_no_exact_original(tmp_path, dtype):
    sae = make_sae()
    sae.b_enc.data = sae.b_enc.data.double()
    assert export(sae, tmp_path / "sae", normal(40, 6), dtype=dtype).manifest.fidelity is None


def test_the_command_line_takes_a_dtype(tmp_path, capsys):
    assert saeexport_main(["export", str(TINY), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert f"half: {len(HALF_CONTRACTS)} graphs" in said
    assert "parity in bfloat16 on" in said
    assert "\nfidelity to float32 on" in said


def test_int8_weights_of_half_precision_are_refused(tmp_path, dtype):
    with pytest.raises(ExportError, match=f"weights is 'int8' and the SAE is in {dtype}"):
        export(make_sae(), tmp_path / "sae", dtype=dtype, weights="int8")


@pytest.mark.usefixtures("fresh_trace")
def test_traced_graphs_are_in_the_dtype(monkeypatch, tmp_path, dtype):
    """A float32 trace between casts would pass the proof as well, but run at half the speed."""
    seen = []
    trace = graphs.trace
    monkeypatch.setattr(graphs, "trace", lambda sae, config: seen.append(trace(sae, config)) or seen[-1])
    path = export(make_sae(), tmp_path / "sae", dtype=dtype).path
    assert {value.dtype.name for value in seen[0].graph.inputs} == {dtype.upper()}
    ops = [node.op_type for node in onnx.load_model(path / "model.onnx", load_external_data=False).graph.node]
    assert sorted(ops) == sorted(["Sub", "MatMul", "Add", "Relu", "MatMul", "Add", "Sub", "Add", "Identity"])

"""int8 weights: their loss is measured and recorded, is never called parity, and bounds later verification."""

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

import runtime
import saeexport
from runtime import ParityError, ProviderError, SAESession
from runtime.artifact.contracts import CONTRACTS
from runtime.commands.main import main
from runtime.parity.fidelity import describe_fidelity, explained_variance, features_of
from saeexport import CheckpointError, ExportError, export
from saeexport.graphs.passes import int8
from tests.support.breaking import claim_weights, edit_weight, rewrite
from tests.support.samples import HOOKS, TINY, make_sae, normal
from tests.support.zoo import ARCHITECTURES, D_IN, sae_of, takes_target, target_of

CONTROL_FLOW = {"If", "Loop", "Scan"}


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """A read-only folder with an artifact of each architecture, and the SAEs."""
    folder, saes = tmp_path_factory.mktemp("int8"), {}
    for name in ARCHITECTURES:
        sae = saes[name] = sae_of(name, use_error_term=True)
        export(sae, folder / name, normal(60, D_IN), targets=target_of(sae, 60), weights="int8")
    return folder, saes


@pytest.fixture
def artifact(tmp_path):
    """A copy of an artifact with int8 weights, for tests that break it."""
    return export(make_sae(d_in=64, d_sae=128), tmp_path / "sae", normal(50, 64), weights="int8").path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_computes_nearly_the_same_and_records_the_loss(rounded, architecture):
    folder, saes = rounded
    sae, path = saes[architecture], folder / architecture
    assert runtime.verify(path).failures == []
    manifest = runtime.read_artifact(path).manifest
    assert (manifest.weights_dtype, manifest.parity) == ("int8", None)
    x = normal(60, D_IN)
    target = target_of(sae, 60)
    feeds = [torch.from_numpy(a) for a in (x, target) if a is not None]
    with torch.no_grad():
        expected = {name: y.numpy() for name, y in sae.run_with_cache(*feeds)[1].items()}
    with SAESession(path) as session:
        assert session.device == "cpu"
        found = session.compute(x, HOOKS, target) if takes_target(sae) else session.compute(x, HOOKS)
    assert 0 < np.linalg.norm(found[HOOKS[1]] - expected[HOOKS[1]]) < 0.03 * np.linalg.norm(expected[HOOKS[1]])
    assert np.linalg.norm(found[HOOKS[3]] - expected[HOOKS[3]]) < 0.2 * np.linalg.norm(expected[HOOKS[3]])
    fidelity = manifest.fidelity
    on, now = expected[HOOKS[2]] != 0, found[HOOKS[2]] != 0
    if fidelity.tokens == 60:
        assert fidelity.features.l0 == pytest.approx(now.sum() / 60)
        assert fidelity.features.kept == pytest.approx((on & now).sum() / on.sum())
        assert fidelity.features.gained == pytest.approx((now & ~on).sum() / on.sum())
    assert fidelity.hooks[HOOKS[1]].artifact.token < 0.03


def test_only_these_graphs_have_contrib_operators(rounded):
    def operators(graph):
        for node in graph.node:
            yield node.domain, node.op_type
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from operators(attribute.g)

    for name, contract in CONTRACTS.items():
        used = set(operators(onnx.load_model(TINY / f"{name}.onnx", load_external_data=False).graph))
        assert {domain for domain, _ in used} == {""}
        assert contract.for_cpu or not {op for _, op in used} & CONTROL_FLOW
        small = set(
            operators(onnx.load_model(rounded[0] / "standard" / f"{name}.onnx", load_external_data=False).graph)
        )
        assert ("com.microsoft" in {domain for domain, _ in small}) == ("decode" not in name and name != "activate")


def test_the_weights_are_a_quarter(tmp_path):
    sae = make_sae(d_in=128, d_sae=1024)
    sizes = {weights: (export(sae, tmp_path / weights, weights=weights).path / "weights.safetensors").stat().st_size
             for weights in ("float32", "int8")}  # fmt: skip
    assert sizes["int8"] < 0.28 * sizes["float32"]


@pytest.mark.parametrize("shape", [(64, 128), (6, 16), (100, 24), (130, 7)])
def test_the_rounded_values_are_within_half_a_step(tmp_path, shape):
    d_in, d_sae = shape
    sae = make_sae(d_in=d_in, d_sae=d_sae)
    with torch.no_grad():
        sae.W_enc[:, 0] = 0  # a feature without weights
        sae.W_dec[1] = 0
    path = export(sae, tmp_path / "sae", weights="int8").path
    stored = load_file(path / "weights.safetensors")
    assert sorted(stored) == ["W_dec.int8", "W_dec.scale", "W_enc.int8", "W_enc.scale", "b_dec", "b_enc"]
    for name, zero in (("W_enc", 128.0), ("W_dec", 0.0)):
        matrix = getattr(sae, name).detach().numpy()
        matrix = matrix.T if name == "W_enc" else matrix
        numbers, scales = stored[f"{name}.int8"].astype(np.float64), stored[f"{name}.scale"].astype(np.float64)
        found = ((numbers - zero) * scales[..., None]).reshape(len(matrix), -1)[:, : matrix.shape[1]]
        assert np.abs(found - matrix).max() <= 0.501 * scales.max()
        assert np.abs(found - matrix).max() > 0


def test_it_is_never_called_parity(artifact, capsys):
    with pytest.raises(ParityError, match="has int8 weights: it is not the original"):
        runtime.assert_parity(artifact)
    with pytest.raises(ParityError, match="has int8 weights and is not at parity"):
        saeexport.assert_parity(artifact)
    with pytest.raises(CheckpointError, match="has int8 weights, from which the original cannot be restored"):
        saeexport.load(artifact)
    assert main(["inspect", str(artifact)]) == 0
    said = capsys.readouterr().out
    assert "int8 weights: no parity but fidelity to float32 on 50 tokens" in said
    assert "parity at export" not in said
    assert main(["verify", str(artifact)]) == 0
    assert "held to twice the errors at export: fidelity, not parity" in capsys.readouterr().out


def test_the_command_line_says_what_is_lost(tmp_path, capsys):
    from saeexport.cli import main as saeexport_main

    assert saeexport_main(["export", str(TINY), str(tmp_path / "out"), "--weights", "int8"]) == 0
    said = capsys.readouterr().out
    assert "no parity but fidelity to float32" in said
    assert "parity on" not in said


def test_it_runs_on_a_cpu_only(artifact):
    with pytest.raises(ProviderError, match=r"cuda was asked for, but .*sae has int8 weights"):
        SAESession(artifact, "cuda")


@pytest.mark.parametrize("name", ["W_enc.scale", "W_dec.scale", "b_enc"])
def test_other_weights_than_at_export_are_seen(artifact, name):
    rewrite(artifact, "weights.safetensors", edit_weight(name, slice(None), 1.2))
    claim_weights(artifact)
    failures = "\n".join(runtime.verify(artifact).failures)
    assert "the token error is" in failures


@pytest.mark.parametrize(
    ("what", "spoil", "stage"),
    [
        ("_rows_to_int8", lambda matrix: matrix[::-1], "hook_sae_recons of decode"),
        ("_columns_to_int8", lambda matrix: matrix * 1.2, "hook_sae_acts_pre of model"),
    ],
)
def test_a_wrong_graph_does_not_become_its_own_budget(tmp_path, monkeypatch, what, spoil, stage):
    rounding = getattr(int8, what)
    monkeypatch.setattr(int8, what, lambda matrix, name: rounding(spoil(matrix), name))
    with pytest.raises(ExportError, match=f"with int8 weights {stage} is off by"):
        export(make_sae(d_in=64, d_sae=128), tmp_path / "sae", normal(50, 64), weights="int8")
    assert not any(tmp_path.iterdir())


def test_weights_that_8_bits_cannot_hold_are_refused(tmp_path):
    sae = make_sae(d_in=64, d_sae=128)
    with torch.no_grad():
        sae.W_enc[0] *= 1000  # every block of every feature has one that is much larger than the rest
    x = normal(50, 64)
    x[:, 0] = 0
    with pytest.raises(ExportError, match=r"hook_sae_acts_pre of model is off by .*; at most .* is allowed"):
        export(sae, tmp_path / "sae", x, weights="int8")
    assert not any(tmp_path.iterdir())


def test_weights_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ExportError, match="weights is 'int4' and the SAE is in float32; weights must be None"):
        export(make_sae(), tmp_path / "sae", weights="int4")


@pytest.mark.usefixtures("fresh_trace")
def test_the_same_bytes_come_out_twice(tmp_path):
    sae = make_sae(d_in=64, d_sae=128)
    folders = [export(sae, tmp_path / str(i), normal(50, 64), weights="int8").path for i in range(2)]
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def test_features_are_counted():
    before, now = np.array([[1.0, 2, 0, 0], [3, 0, 0, 0]]), np.array([[1.0, 0, 0.5, 0], [2, 0, 0, 0]])
    found = features_of(before, now)
    assert (found.kept, found.gained, found.l0_original, found.l0) == (2 / 3, 1 / 3, 1.5, 1.5)


def test_explained_variance():
    x = normal(100, 5)
    mean = np.broadcast_to(x.astype(np.float64).mean(axis=0), x.shape)
    for recons, expected in ((x, 1.0), (mean, pytest.approx(0.0))):
        assert explained_variance({HOOKS[0]: x, HOOKS[3]: recons, HOOKS[4]: x - recons}, None) == expected
    assert explained_variance({HOOKS[0]: x, HOOKS[3]: x * 2}, x * 2) == 1.0


def test_the_explained_variance_of_a_transcoder_without_a_target_is_unknown(tmp_path):
    artifact = export(sae_of("transcoder"), tmp_path / "sae", normal(40, D_IN), weights="int8")
    assert artifact.manifest.fidelity.explained is None
    assert "variance explained" not in describe_fidelity(artifact.manifest.fidelity)

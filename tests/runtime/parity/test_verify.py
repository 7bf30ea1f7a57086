"""What a verification runs, what it leaves out, and what its report says."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import runtime
from runtime import IntegrityError, ParityError, SAESession, read_artifact, verify_outputs
from runtime.artifact.contracts import CONTRACTS, HALF_CONTRACTS, PORTABLE
from runtime.parity import outputs as outputs_module
from runtime.parity import verify as verify_module
from runtime.parity.report import Report
from runtime.parity.verify import judged_outputs, open_verified, read_intact, skipped_graphs
from tests.support.keys import make_key
from tests.support.samples import TINY

FOR_CPU = "it is a CPU variant, which runs on a CPU only"
HALF = "a CPU does not compute in float16; this graph runs on a GPU only"
NO_K = "TensorRT cannot take its input k"


@pytest.mark.parametrize(("device", "portable", "features", "for_cpu"), [
    ("cpu", None, None, None), ("cuda:0", None, None, FOR_CPU), ("tensorrt:0", None, NO_K, FOR_CPU),
])  # fmt: skip
def test_graphs_that_a_device_does_not_run_are_left_out(device, portable, features, for_cpu):
    expected = {
        name: for_cpu if contract.for_cpu else features if name == "features" else portable
        for name, contract in CONTRACTS.items()
    }
    expected = {name: reason for name, reason in expected.items() if reason}
    assert skipped_graphs(read_artifact(TINY).manifest, device) == expected


def test_graphs_in_half_precision_run_on_a_cpu_as_its_variants(unpacked):
    manifest = read_artifact(unpacked("gated-float16")).manifest
    assert skipped_graphs(manifest, "cpu") == dict.fromkeys(PORTABLE, HALF)
    variants = [name for name, contract in HALF_CONTRACTS.items() if contract.for_cpu]
    assert skipped_graphs(manifest, "cuda:0") == dict.fromkeys(variants, FOR_CPU)
    assert skipped_graphs(manifest, "tensorrt:0") == {**dict.fromkeys(variants, FOR_CPU), "features": NO_K}


@pytest.mark.parametrize("name", ["tiny", "gated-float16", "standard-int8"])
def test_a_report_says_what_was_verified(unpacked, name):
    path = TINY if name == "tiny" else unpacked(name)
    report, manifest = runtime.verify(path, "cpu"), read_artifact(path).manifest
    assert report.failures == []
    more = {
        "tiny": "",
        "gated-float16": f"; not run here: {', '.join(PORTABLE)}",
        "standard-int8": "; int8 weights, held to twice the errors at export: fidelity, not parity",
    }[name]
    assert report.title == f"{path} on cpu: {manifest.golden.tokens} tokens{more}"
    assert (report.device, report.tokens, report.artifact.path) == ("cpu", manifest.golden.tokens, path)
    assert report.skipped == skipped_graphs(manifest, "cpu")
    judged = [(graph, hook) for graph, hook in judged_outputs(manifest) if graph not in report.skipped]
    assert [(verdict.graph, verdict.hook) for verdict in report.verdicts] == judged
    if name == "standard-int8":
        with pytest.raises(ParityError, match="has int8 weights: it is not the original"):
            runtime.assert_parity(path, "cpu")
    else:
        runtime.assert_parity(path, "cpu")


def test_the_title_names_graphs_that_no_other_graph_stands_for(monkeypatch):
    monkeypatch.setattr(verify_module, "judge_graphs", lambda *arguments: None)
    session = SimpleNamespace(artifact=read_artifact(TINY), device="tensorrt:0", release=None)
    report = verify_module.judge_session(session, SimpleNamespace(tokens=3))
    assert report.title == f"{TINY} on tensorrt:0: 3 tokens; not run here: features"
    assert len(report.skipped) > 1


def test_every_file_that_was_changed_is_named(artifact):
    for name in ("decode.onnx", "golden.safetensors"):
        (artifact / name).write_bytes((artifact / name).read_bytes() + b"\0")
    for report in (read_intact(artifact), runtime.verify(artifact, "cpu")):
        assert report.title == f"{artifact}: not intact"
        assert len(report.problems) == 2
        assert all(name in "".join(report.problems) for name in ("decode.onnx", "golden.safetensors"))
        assert report.sha256 == read_artifact(artifact).sha256
    with pytest.raises(ParityError, match="not intact"):
        runtime.assert_parity(artifact, "cpu")


def test_an_artifact_that_was_to_be_signed_is_not_verified(artifact, tmp_path):
    _, public = make_key(tmp_path)
    report = read_intact(artifact, public)
    assert isinstance(report, Report)
    assert report.title == f"{artifact}: not signed as asked"
    assert len(report.problems) == 1
    assert read_intact(artifact).path == artifact


def test_a_session_of_a_verification_has_whole_graphs_in_the_precision_asked_for(monkeypatch):
    asked = []

    class Session:
        def __init__(self, *arguments, **more):
            asked.append((arguments, more))
            self.artifact = read_artifact(TINY)

        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(verify_module, "SAESession", Session)
    open_verified(read_artifact(TINY), "cpu", "tf32")
    monkeypatch.setattr(outputs_module, "SAESession", Session)
    with pytest.raises(KeyboardInterrupt):
        verify_outputs(TINY, None)
    assert asked == [
        ((TINY, "cpu"), {"precision": "tf32", "shared_stages": False}), ((TINY, "cpu"), {"shared_stages": False})
    ]  # fmt: skip


def test_an_artifact_that_is_replaced_meanwhile_is_refused(artifact, unpacked, monkeypatch):
    before, closed = read_artifact(artifact), []
    shutil.rmtree(artifact)
    shutil.copytree(unpacked("standard"), artifact)
    close = SAESession.close
    monkeypatch.setattr(SAESession, "close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(IntegrityError, match="was replaced while it was verified. Verify it again"):
        open_verified(before, "cpu")
    assert len(closed) == 1


# The outputs of another program


def test_the_report_of_another_program(unpacked):
    """It may return bfloat16 as ml_dtypes has it. `activate` and `decode` run here, as they are written for a CPU."""
    path, given = unpacked("jumprelu-bfloat16"), []
    with SAESession(path, "cpu") as session:

        def run(graph, inputs):
            given.append((graph, {name: type(value) for name, value in inputs.items()}))
            return {name: np.asarray(value) for name, value in session.run_graph(f"{graph}.wide", inputs).items()}

        report = verify_outputs(path, run, ["model", "encode"])
    tokens = read_artifact(path).manifest.golden.tokens
    assert report.failures == []
    assert report.title == f"outputs of another program for {path}: {tokens} tokens"
    assert (report.device, report.tokens, report.artifact.path) == ("another program", tokens, path)
    assert given == [("model", {"input": np.ndarray}), ("encode", {"input": np.ndarray})]
    assert {verdict.graph for verdict in report.verdicts} == {"model", "encode"}

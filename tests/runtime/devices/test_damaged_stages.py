"""A damaged graph is named by the error, whatever graph was loaded when it was found."""

import pytest

from runtime import Ablate, ArtifactError, SAESession
from runtime.artifact.stages import split
from runtime.devices import staged
from saeexport import export
from tests.support.breaking import edit_graph, rewrite
from tests.support.samples import normal
from tests.support.zoo import D_IN, sae_of

MATRICES = 100
"""A number of elements that the matrices of a small SAE have, and its biases do not."""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(staged, "SMALLEST_SHARED", MATRICES)
    return export(sae_of("standard", use_error_term=True), tmp_path / "sae").path


def unknown_decoder(model):
    next(node for node in model.graph.node if "hook_sae_recons" in node.output).op_type = "NoSuchOperator"


def renamed_output(model):
    model.graph.output[0].name = "hook_sae_inputs"


CALLS = {
    "model": lambda session: session(normal(3, D_IN)),
    "steer": lambda session: session.steer(normal(3, D_IN), {3: Ablate()}),
    "decode": lambda session: session.decode(-normal(3, 48)),
}


@pytest.mark.parametrize("call", ["model", "steer"])
def test_a_damaged_stage_is_that_of_the_graph_it_was_cut_out_of(path, call):
    rewrite(path, "model.sparse.onnx", edit_graph(unknown_decoder))
    with SAESession(path, "cpu") as session:
        with pytest.raises(ArtifactError, match=r"cannot load \S*/model\.sparse\.onnx on cpu: .*NoSuchOperator"):
            CALLS[call](session)
        session.top_features(normal(3, D_IN), 2)  # needs the encoder only


@pytest.mark.parametrize("call", CALLS)
def test_what_a_graph_adds_to_the_stages_is_its_own(path, call):
    rewrite(path, f"{call}.sparse.onnx", edit_graph(unknown_decoder))
    message = rf"cannot load \S*/{call}\.sparse\.onnx on cpu"
    with SAESession(path, "cpu") as session, pytest.raises(ArtifactError, match=message):
        CALLS[call](session)


def test_an_output_that_nothing_computes_is_left_to_onnx_runtime(path):
    rewrite(path, "model.sparse.onnx", edit_graph(renamed_output))
    assert split((path / "model.sparse.onnx").read_bytes(), MATRICES) is None
    with SAESession(path, "cpu") as session:
        with pytest.raises(ArtifactError, match=r"model\.sparse\.onnx"):
            CALLS["model"](session)
        CALLS["steer"](session)


def test_damaged_weights_are_named_before_a_stage_that_needs_them(path):
    rewrite(path, "model.sparse.onnx", edit_graph(unknown_decoder))
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with SAESession(path, "cpu") as session, pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        CALLS["steer"](session)

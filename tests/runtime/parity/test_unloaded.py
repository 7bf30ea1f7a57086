"""Graphs that a device cannot run are checked for their weights, inputs and outputs."""

import shutil

import pytest

import runtime
from runtime.artifact.contracts import PORTABLE
from saeexport import export
from tests.support.breaking import edit_graph, rewrite
from tests.support.zoo import CASES, sae_of

SEVERAL = [graph for graph, contract in PORTABLE.items() if len(contract.outputs) > 1]


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    return export(sae_of("standard"), tmp_path_factory.mktemp("unloaded") / "sae", dtype="float16").path


def swap_outputs(model):
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[::-1])


def rename_input(model):
    value = model.graph.input[0]
    for node in model.graph.node:
        node.input[:] = ["x" if name == value.name else name for name in node.input]
    value.name = "x"


def leave_out_the_name(model):
    model.graph.input[0].ClearField("name")


def claim_other_weights(model):
    for entry in model.metadata_props:
        entry.value = "0" * 64 if entry.key == "saeexport.weights_sha256" else entry.value


CHANGES = {
    swap_outputs: "has the outputs",
    rename_input: "has the inputs x ",
    leave_out_the_name: "not an ONNX model",
    claim_other_weights: "other weights",
}


@pytest.mark.parametrize(
    ("graph", "change"),
    [(graph, change) for graph in PORTABLE for change in CHANGES if change is not swap_outputs or graph in SEVERAL],
)
def test_a_graph_that_no_cpu_runs_in_half_precision(halved, tmp_path, graph, change):
    path = shutil.copytree(halved, tmp_path / "sae")
    rewrite(path, f"{graph}.onnx", edit_graph(change))
    (failure,) = runtime.verify(path, "cpu").failures
    assert f"{graph}.onnx" in failure
    assert CHANGES[change] in failure


def test_a_file_that_is_not_onnx(halved, tmp_path):
    path = shutil.copytree(halved, tmp_path / "sae")
    rewrite(path, "features.onnx", lambda file: file.write_bytes(b"\xff" * 40))
    (failure,) = runtime.verify(path, "cpu").failures
    assert "features.onnx is not an ONNX model" in failure


def test_a_file_whose_operators_read_what_is_not_there(halved, tmp_path):
    path = shutil.copytree(halved, tmp_path / "sae")
    rewrite(path, "features.onnx", edit_graph(lambda model: model.graph.node[0].input.append("nowhere")))
    (failure,) = runtime.verify(path, "cpu").failures
    assert "features.onnx is not an ONNX model: KeyError: 'nowhere'" in failure


def test_a_file_with_functions_is_onnx(halved, tmp_path):
    path = shutil.copytree(halved, tmp_path / "sae")
    rewrite(path, "features.onnx", edit_graph(lambda model: model.functions.add(name="f", domain="own")))
    assert not runtime.verify(path, "cpu").failures


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("architecture", "more"), [CASES[0], CASES[-1], ("topk", {}), ("gated", {})])
def test_what_was_exported_passes(tmp_path, architecture, more, dtype):
    report = runtime.verify(export(sae_of(architecture, **more), tmp_path / "sae", dtype=dtype).path, "cpu")
    assert {*PORTABLE} == {*report.skipped}
    assert not report.failures

"""The part of a graph that some features need: what may be cut, what is refused, and damaged files."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime import ArtifactError, InputError, read_artifact
from runtime.artifact.held import HeldFiles
from runtime.artifact.onnxfile import Parameter
from runtime.artifact.selection import FEATURE_BY_FEATURE, select_features
from tests.support.samples import TINY, normal

POST = "hook_sae_acts_post"
IDS = np.array([4, 0, 4])
D_IN, D_SAE = 3, 5
CONFIG = replace(read_artifact(TINY).manifest.sae, d_in=D_IN, d_sae=D_SAE, head_shape=None)
W, B, ROW = normal(D_IN, D_SAE), normal(D_SAE, seed=2), normal(1, D_SAE, seed=3)
PARAMETERS = {"W": W, "Wt": W.T.copy(), "b": B, "row": ROW, "one": normal(1), "square": normal(D_IN, D_IN)}
X = normal(4, D_IN, seed=9)


def model_of(*nodes, constants=()):
    tensors = [numpy_helper.from_array(array, name) for name, array in constants]
    tensors += [numpy_helper.from_array(array, name) for name, array in PARAMETERS.items()]
    nodes = [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["tokens", D_IN])
    result = helper.make_tensor_value_info(POST, TensorProto.FLOAT, ["tokens", D_SAE])
    graph = helper.make_graph(nodes, "graph", [given], [result], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def select(model, config=CONFIG, ids=IDS):
    parameters = {name: Parameter(TensorProto.FLOAT, array) for name, array in PARAMETERS.items()}
    return select_features(model, Path("graph.onnx"), parameters, ids, config)


def run(model):
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": X})[0]


GEMM = ("Gemm", ["input", "W", "b"], ["pre"])
TAKEN = {
    "bias": [GEMM, ("Relu", ["pre"], [POST])],
    "no bias": [("Gemm", ["input", "W"], ["pre"]), ("Relu", ["pre"], [POST])],
    "one bias for all": [("Gemm", ["input", "W", "one"], ["pre"]), ("Relu", ["pre"], [POST])],
    "transposed": [("Gemm", ["input", "Wt", "row"], ["pre"], {"transB": 1}), ("Relu", ["pre"], [POST])],
    "product and sum": [("MatMul", ["input", "W"], ["z"]), ("Add", ["b", "z"], ["pre"]), ("Tanh", ["pre"], [POST])],
    "something before": [("Gemm", ["input", "square"], ["c"]), ("Gemm", ["c", "W"], ["pre"]), ("Abs", ["pre"], [POST])],
    "a function of a parameter": [("Abs", ["Wt"], ["V"]), ("Gemm", ["input", "V"], [POST], {"transB": 1})],
    "two products": [
        GEMM, ("MatMul", ["input", "W"], ["z"]), ("Greater", ["z", "row"], ["on"]),
        ("Where", ["on", "pre", "one"], [POST]),
    ],
    "what is not needed": [GEMM, ("ReduceSum", ["pre"], ["sum"]), ("Relu", ["pre"], [POST])],
}  # fmt: skip
REFUSED = {
    "the largest": [GEMM, ("ReduceMax", ["pre"], ["most"]), ("Sub", ["pre", "most"], [POST])],
    "softmax": [GEMM, ("Softmax", ["pre"], [POST])],
    "features that inhibit each other": [
        GEMM, ("MatMul", ["pre", "Wt"], ["back"]), ("Gemm", ["back", "W"], ["more"]), ("Add", ["pre", "more"], [POST])
    ],
    "a parameter with two uses": [
        ("Gemm", ["input", "W"], ["z"]), ("ReduceSum", ["W"], ["s"]), ("Add", ["z", "s"], [POST])
    ],
    "rows": [("Transpose", ["Wt"], ["V"]), ("Gemm", ["input", "V"], [POST])],
    "a sum over the rows": [("Add", ["Wt", "one"], ["V"]), ("Gemm", ["input", "V"], [POST], {"transB": 1})],
    "the input itself": [("Pad", ["input", "pads"], ["z"]), ("Relu", ["z"], [POST])],
    "a constant of the graph": [GEMM, ("Add", ["pre", "inside"], [POST])],
    "a constant operator": [
        GEMM, ("Constant", [], ["c"], {"value_floats": [1.0, 2.0, 3.0, 4.0, 5.0]}), ("Add", ["pre", "c"], [POST])
    ],
    "ids of features": [GEMM, ("Gather", ["pre", "order"], [POST], {"axis": 1})],
}  # fmt: skip
CONSTANTS = [("inside", normal(D_SAE)), ("pads", np.array([0, 0, 0, 2])), ("order", np.arange(D_SAE)[::-1].copy())]


@pytest.mark.parametrize("nodes", TAKEN.values(), ids=TAKEN)
def test_what_computes_each_feature_by_itself_is_cut(nodes):
    model = model_of(*nodes)
    cut = select(model)
    onnx.checker.check_model(onnx.load_from_string(cut), full_check=True)
    np.testing.assert_allclose(run(cut), run(model)[:, IDS], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nodes", REFUSED.values(), ids=REFUSED)
def test_what_may_read_all_features_is_refused(nodes):
    with pytest.raises(InputError, match="cannot be computed one without the others"):
        select(model_of(*nodes, constants=CONSTANTS))


def test_a_branch_is_refused():
    branch = helper.make_graph(
        [helper.make_node("Relu", ["pre"], ["y"])], "branch", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", D_SAE])],
    )  # fmt: skip
    nodes = [GEMM, ("If", ["yes"], [POST], {"then_branch": branch, "else_branch": branch})]
    with pytest.raises(InputError, match="the operator If"):
        select(model_of(*nodes, constants=[("yes", np.array(True))]))


def test_an_operator_of_the_list_does_not_mix_features():
    """Each operator is checked against ONNX's own schema: it has no axis, and broadcasts at most."""
    for name in FEATURE_BY_FEATURE:
        schema = onnx.defs.get_schema(name, 20)
        assert not {"axis", "axes", "keepdims"} & set(schema.attributes), name
        assert len(schema.outputs) == 1, name


def test_parameters_that_no_model_holds(monkeypatch):
    monkeypatch.setattr("runtime.artifact.selection.LARGEST_PARAMETER", 35)
    select(model_of(*TAKEN["bias"]), ids=IDS[:2])
    with pytest.raises(InputError, match="3 features are too many for one model"):
        select(model_of(*TAKEN["bias"]))


def test_parameters_of_another_sae_are_refused():
    with pytest.raises(ArtifactError, match=r"graph.onnx is not an ONNX model: .*W is \(3, 5\), for 6 features"):
        select(model_of(*TAKEN["bias"]), replace(CONFIG, d_sae=6))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    with pytest.raises((ArtifactError, InputError)):
        select(content)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["acts", "encode"]))
def test_a_changed_byte_gives_a_model_or_an_error(position, byte, graph):
    files = HeldFiles(read_artifact(TINY))
    content = bytearray(files.graphs[graph].content)
    content[position % len(content)] = byte
    with contextlib.suppress(ArtifactError, InputError):
        select_features(
            bytes(content), Path("graph.onnx"), files.parameters(graph), IDS, read_artifact(TINY).manifest.sae
        )
    files.close()

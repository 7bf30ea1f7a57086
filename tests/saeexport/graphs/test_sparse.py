"""The sparse decoder: exact at every sparsity, with a test for each of its paths."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from saeexport.graphs.passes.sparse import BLOCK, ROWS, ROWS_PER_TOKEN, SMALL_BATCH, decode_sparsely
from tests.support.samples import normal

D_OUT = 5


def dense_model(d_sae, activation="Relu", bias=True):
    """Return the model acts_post = activation(x), recons = acts_post @ W + b, with d_sae features."""
    nodes = [
        helper.make_node(activation, ["x"], ["acts"]),
        helper.make_node("Gemm", ["acts", "W", "b"] if bias else ["acts", "W"], ["recons"]),
    ]
    arrays = {"W": normal(d_sae, D_OUT, seed=2), **({"b": normal(D_OUT, seed=3)} if bias else {})}
    graph = helper.make_graph(
        nodes, "dense", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", d_sae])],
        [helper.make_tensor_value_info("acts", TensorProto.FLOAT, ["tokens", d_sae]),
         helper.make_tensor_value_info("recons", TensorProto.FLOAT, ["tokens", D_OUT])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), arrays


def sparse_session(d_sae, folder=None, **more):
    """Return a session of the rewritten model, and its parameters; it writes a profile into `folder`."""
    model, arrays = dense_model(d_sae, **more)
    rewritten = ir.to_proto(decode_sparsely(ir.from_proto(model), "acts"))
    onnx.checker.check_model(rewritten, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
    return onnxruntime.InferenceSession(rewritten.SerializeToString(), options), arrays


def check(session, arrays, acts):
    """Check the reconstruction against float64, to within float32 rounding."""
    found, recons = session.run(None, {"x": acts})
    np.testing.assert_array_equal(found, acts)
    weights, bias = arrays["W"].astype(np.float64), arrays.get("b", np.zeros(D_OUT)).astype(np.float64)
    terms = np.abs(acts.astype(np.float64)) @ np.abs(weights) + np.abs(bias)
    np.testing.assert_array_less(np.abs(recons - (acts.astype(np.float64) @ weights + bias)), terms * 1e-5 + 1e-30)


def activations(tokens, d_sae, on, seed=0):
    """Return activations with `on[token % len(on)]` features on for each token."""
    draws = np.random.default_rng(seed)
    acts = np.zeros((tokens, d_sae), np.float32)
    for token in range(tokens):
        features = draws.choice(d_sae, min(d_sae, on[token % len(on)]), replace=False)
        acts[token, features] = draws.uniform(0.1, 3.0, len(features))
    return acts


SESSIONS = {(d_sae, activation, bias): sparse_session(d_sae, activation=activation, bias=bias)
            for d_sae in (1, 7, 24, 64, 200, 512, 1000) for activation in ("Relu", "Identity")
            for bias in (True, False)}  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    key=st.sampled_from(sorted(SESSIONS)),
    tokens=st.integers(0, 70),
    on=st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 8, 30, 60, 100, 1000]), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    signed=st.booleans(),
)
def test_it_is_exact_at_every_sparsity(key, tokens, on, seed, signed):
    d_sae, activation, _ = key
    acts = activations(tokens, d_sae, on, seed)
    if signed and activation == "Identity":
        acts *= np.random.default_rng(seed + 1).choice([-1, 1], acts.shape).astype(np.float32)
    check(*SESSIONS[key], acts)


@pytest.mark.parametrize(
    "tokens", [0, 1, 2, SMALL_BATCH - 1, SMALL_BATCH, SMALL_BATCH + 1, 2 * BLOCK, 2 * BLOCK + 1, 100, 257]
)
@pytest.mark.parametrize("on", [[0], [1], [12], [10000], [3, 3, 3, 10000], [0] * 200 + [10000], [0, 40]])
def test_it_is_exact_at_the_borders(tokens, on):
    check(*SESSIONS[1000, "Relu", True], activations(tokens, 1000, on))


def nodes_that_ran(folder, acts):
    """Run and check a batch, and return the operators that ran with the shapes of their first outputs."""
    session, arrays = sparse_session(acts.shape[1], folder)
    check(session, arrays, acts)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"]]
    return [(node["op_name"], next(iter(node["output_type_shape"][0].values()), [])) for node in nodes]


def taken(folder, acts):
    """Return which of the three products a batch uses."""
    ran = nodes_that_ran(folder, acts)
    if "Loop" in dict(ran):
        return "blocks"
    return "together" if any(name == "Gather" and shape[-1:] == [D_OUT] for name, shape in ran) else "dense"


LIMIT = {tokens: 1024 // ROWS + tokens * (1024 // ROWS_PER_TOKEN) for tokens in (1, SMALL_BATCH, 100)}


@pytest.mark.parametrize(
    ("tokens", "on", "path"),
    [
        (1, [12], "together"),
        (1, [LIMIT[1]], "together"),
        (1, [LIMIT[1] + 1], "dense"),
        (SMALL_BATCH, [12], "together"),
        (100, [0], "blocks"),
        (100, [8], "blocks"),
        (100, [LIMIT[100] // 100 + 1], "dense"),
        (100, [200], "dense"),
        (100, [0] * 99 + [1024], "blocks"),
        (100, [1024], "dense"),
    ],
)
def test_each_path_is_taken_where_it_is_worth_it(tmp_path, tokens, on, path):
    assert taken(tmp_path, activations(tokens, 1024, on)) == path


def test_a_dense_token_among_sparse_ones_does_not_widen_their_block(tmp_path):
    acts = activations(128, 4096, [0] * 127 + [4096])
    acts[:, 5] = 1.0
    products = [shape for name, shape in nodes_that_ran(tmp_path, acts) if name == "MatMul"]
    assert products == [[BLOCK, 1, D_OUT]] * 8
    rows = [shape for name, shape in nodes_that_ran(tmp_path, acts) if name == "Gather" and shape[-1:] == [D_OUT]]
    assert rows == [[BLOCK, D_OUT]] * 8 + [[128, D_OUT]]


@pytest.mark.parametrize("together", [True, False])
def test_neighbouring_features_are_not_mistaken_for_few(tmp_path, together):
    """A tenth of the features is on, in a tenth of the groups or scattered over all of them."""
    acts = np.zeros((100, 4096), np.float32)
    acts[:, np.arange(409) if together else np.arange(0, 4096, 10)] = 1.0
    assert taken(tmp_path, acts) == "dense"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("activation", ["Relu", "Identity"])
def test_what_is_not_a_number_stays_in_its_token_and_is_not_lost(bad, tokens, activation):
    acts = activations(tokens, 200, [3])
    acts[1, 77] = bad
    with np.errstate(invalid="ignore"):
        dense = onnxruntime.InferenceSession(dense_model(200, activation)[0].SerializeToString())
        expected = dense.run(["recons"], {"x": acts})[0]
        (recons,) = SESSIONS[200, activation, True][0].run(["recons"], {"x": acts})
    np.testing.assert_array_equal(np.isfinite(recons), np.isfinite(expected))
    others = np.arange(tokens) != 1
    np.testing.assert_allclose(recons[others], expected[others], rtol=1e-4, atol=1e-5)


def test_the_smallest_value_is_not_overlooked():
    tiny = np.finfo(np.float32).smallest_subnormal
    for activation in ("Relu", "Identity"):
        session, arrays = SESSIONS[200, activation, False]
        for tokens in (1, 40):
            acts = np.zeros((tokens, 200), np.float32)
            acts[0, 3] = tiny * 2**20
            (recons,) = session.run(["recons"], {"x": acts})
            np.testing.assert_allclose(recons[0], acts[0, 3] * arrays["W"][3], rtol=1e-3, atol=tiny)
            assert recons[0].any()


def test_values_that_cancel_are_not_overlooked():
    acts = np.zeros((40, 200), np.float32)
    acts[:, 8], acts[:, 9] = 2.0, -2.0
    check(*SESSIONS[200, "Identity", True], acts)


def test_a_product_that_is_not_one_of_rows_stays_as_it_is():
    model, _ = dense_model(24)
    model.graph.node[1].attribute.append(helper.make_attribute("alpha", 2.0))
    rewritten = ir.to_proto(decode_sparsely(ir.from_proto(model), "acts"))
    assert [node.op_type for node in rewritten.graph.node] == ["Relu", "Gemm"]

"""The sparse result: it is complete where `lossless` says so, and only there."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import InputError, SAESession, Scale, read_artifact
from runtime.parity.decisions import Stages
from runtime.parity.golden import load_golden
from runtime.parity.proof import _judge_features
from runtime.session.features import TopFeatures
from saeexport import export
from tests.support.breaking import edit_graph, failures_of, rewrite
from tests.support.samples import TINY, normal
from tests.support.zoo import sae_of


@pytest.fixture(scope="module", params=["standard", "abstopk", "jumprelu", "gated"])
def sae(request, artifact_of):
    with SAESession(artifact_of(request.param).path, "cpu") as session:
        yield session


def strongest(acts, k):
    """Return the k largest absolute values of each token, in descending order."""
    return -np.sort(-np.abs(acts), axis=-1)[..., :k]


@pytest.mark.parametrize("k", [1, 2, 9, 16, 17, 47, 48])
@pytest.mark.parametrize("lead", [(), (0,), (1,), (40,), (2, 3)])
def test_they_are_the_strongest_and_it_is_said_whether_any_is_missing(sae, k, lead):
    x = normal(*lead, 10)
    acts, found = sae.encode(x), sae.top_features(x, k)
    assert found.indices.shape == found.values.shape == (*lead, k)
    assert (found.indices.dtype, found.values.dtype, found.l0.dtype) == (np.int64, np.float32, np.int64)
    np.testing.assert_array_equal(found.l0, (acts != 0).sum(axis=-1))
    np.testing.assert_array_equal(found.lossless, found.l0 <= k)
    np.testing.assert_array_equal(np.abs(found.values), strongest(acts, k))
    on = found.values != 0
    np.testing.assert_array_equal(np.take_along_axis(acts, found.indices, -1)[on], found.values[on])
    assert (found.indices[~on] == -1).all()
    dense = found.dense(48)
    np.testing.assert_array_equal(dense[found.lossless], acts[found.lossless])
    if k == 1 and acts.size:
        assert not found.lossless.all()  # or the test would compare nothing


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(0, 30), k=st.integers(1, 48), scale=st.sampled_from([0.0, 0.05, 0.3, 1.0, 10.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_no_batch_confuses_it(sae, tokens, k, scale, seed):
    x = normal(tokens, 10, seed=seed) * np.float32(scale)
    acts, found = sae.encode(x), sae.top_features(x, k)
    np.testing.assert_array_equal(np.abs(found.values), strongest(acts, k))
    np.testing.assert_array_equal(found.l0, (acts != 0).sum(axis=-1))


@pytest.mark.parametrize("k", [2.5, "3", None, [4]])
def test_a_k_that_is_no_whole_number_is_refused(sae, k):
    with pytest.raises(InputError, match="it must be a whole number"):
        sae.top_features(normal(3, 10), k)


def test_a_k_of_numpy_is_taken(sae):
    assert sae.top_features(normal(3, 10), np.int32(4)).indices.shape == (3, 4)


@pytest.mark.parametrize("k", [0, -1, 49])
def test_a_k_out_of_range_is_refused(sae, k):
    with pytest.raises(InputError, match=f"k is {k}; it must be from 1 to d_sae = 48"):
        sae.top_features(normal(2, 10), k)


def test_it_can_be_unpacked_and_read_by_name():
    with SAESession(TINY, "cpu") as session:
        indices, values, l0 = found = session.top_features(normal(3, session.cfg.d_in), 2)
    assert (indices is found.indices, values is found.values, l0 is found.l0) == (True, True, True)


def test_a_place_without_a_feature_does_not_erase_one():
    found = TopFeatures(np.array([[3, -1]]), np.array([[2.0, 0.0]], np.float32), np.array([1]))
    np.testing.assert_array_equal(found.dense(4), [[0, 0, 0, 2]])


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_an_error(index):
    with pytest.raises(InputError, match="d_sae is 4"):
        TopFeatures(np.array([[index]]), np.array([[1.0]]), np.array([1])).dense(4)


def features_gate(change):
    def on_model(model):
        graph = model.graph
        change(graph, {node.output[0]: node for node in graph.node})

    return edit_graph(on_model)


def weaker_first(graph, by_output):
    """Sort the strongest features in ascending order."""
    *_, sort = (node for node in graph.node if node.op_type == "TopK")
    sort.attribute.append(onnx.helper.make_attribute("largest", 0))


def other_features(graph, by_output):
    """Return the id of the next feature for each feature."""
    (maker,) = (node for node in graph.node if "indices" in node.output)
    maker.output[list(maker.output).index("indices")] = "exact"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "one_beside"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(16), "all"))
    graph.node.append(onnx.helper.make_node("Add", ["exact", "one_beside"], ["beside"]))
    graph.node.append(onnx.helper.make_node("Mod", ["beside", "all"], ["indices"]))


def keep_the_tail(graph, by_output):
    """Return whatever index the search found for a place without a feature, as a plain TopK does."""
    node = by_output["indices"]
    assert node.op_type == "Where"
    node.op_type, node.input[:] = "Identity", [node.input[1]]


def weakest_groups(graph, by_output):
    """Search the groups with the smallest maxima. If every group is searched, this changes nothing."""
    first = next(node for node in graph.node if node.op_type == "TopK")
    first.attribute.append(onnx.helper.make_attribute("largest", 0))


def test_the_strongest_are_sought_where_there_are_few(tmp_path, capsys):
    path = export(sae_of("standard"), tmp_path / "sae").path  # of 48 features, three groups
    rewrite(path, "features.sparse.onnx", features_gate(weakest_groups))
    assert "features.sparse: with k = 1, token " in failures_of(path, capsys)


@pytest.mark.parametrize("output", ["indices", "l0"])
@pytest.mark.parametrize("graph", ["features", "features.sparse"])
def test_what_is_wrong_for_few_features_only(artifact, capsys, graph, output):
    def one_more_if_k_is_one(graph, by_output):
        node = by_output.get(output) or next(node for node in graph.node if output in node.output)
        node.output[list(node.output).index(output)] = "right"
        for name, value in (("one", 1), ("d_sae", 16)):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
        make = onnx.helper.make_node
        graph.node.extend([make("Equal", ["k", "one"], ["alone"]), make("Cast", ["alone"], ["more"], to=7),
                           make("Add", ["right", "more"], ["moved"]),
                           make("Mod", ["moved", "d_sae"], [output])])  # fmt: skip

    rewrite(artifact, f"{graph}.onnx", features_gate(one_more_if_k_is_one))
    expected = f"{graph}: with k = 1, token 0 gets other features or another l0 than with k = 16"
    assert expected in failures_of(artifact, capsys)


def one_too_many(graph, by_output):
    """Count one feature too many."""
    by_output["l0"].output[0] = "exact"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "one_more"))
    graph.node.append(onnx.helper.make_node("Add", ["exact", "one_more"], ["l0"]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (weaker_first, "values are not in descending order for token 0 (and 15 more like it)"),
        (other_features, ""),
        (keep_the_tail, "indices are not -1 exactly where values are 0 for token 0"),
        (one_too_many, "l0 is not the number of features on for token 0"),
    ],
)
@pytest.mark.parametrize("graph", ["features", "features.sparse"])
def test_strongest_features_that_are_wrong(artifact, capsys, graph, change, reason):
    rewrite(artifact, f"{graph}.onnx", features_gate(change))
    assert f"{graph}: {reason}" in failures_of(artifact, capsys)


NAN_SAES = ["standard", "abstopk", "topk", "jumprelu", "gated"]


@pytest.fixture(scope="module", params=[(name, dtype) for name in NAN_SAES for dtype in ("float32", "bfloat16")])
def families(request, artifact_of):
    """The sessions of an artifact that run different graphs."""
    name, dtype = request.param
    path = artifact_of(name, dtype).path
    with (
        SAESession(path, "cpu") as first,
        SAESession(path, "cpu", graphs="auto" if dtype == "bfloat16" else "portable") as other,
    ):
        yield first, other


@pytest.mark.parametrize("k", [1, 9, 31, 48])
def test_a_token_with_nan_has_no_features_in_every_graph(families, k):
    for session in families:
        x = normal(40, 10).astype(session.cfg.dtype)
        clean = session.top_features(x, k)
        x[7, 3] = np.nan
        x[20] = np.nan
        found = session.top_features(x, k)
        with session.steering({5: Scale(1.0)}):
            steered = session.top_features(x, k)
        lost = np.isin(np.arange(40), [7, 20])
        for indices, values, l0 in (found, steered):
            assert (indices[lost] == -1).all()
            assert np.isnan(values[lost].astype(np.float32)).all()
            assert (l0[lost] == -1).all()
        np.testing.assert_array_equal(found.lossless, clean.lossless & ~lost)
        for array, expected in zip(found, clean, strict=True):
            np.testing.assert_array_equal(array[~lost], expected[~lost])
        dense = found.dense(48).astype(np.float32)
        assert np.isnan(dense[lost]).all()
        assert np.isfinite(dense[~lost]).all()


@pytest.mark.parametrize("k", [1, 8, 20, 40])
def test_some_nan_or_infinity_among_many_features(tmp_path_factory, k):
    """NaN that reaches some features only, as `inf * 0` does, counts for the whole token."""
    sae = sae_of("abstopk", k=20)
    with torch.no_grad():
        sae.W_enc[0, :24] = 0.0
        sae.b_dec.zero_()
    path = export(sae, tmp_path_factory.mktemp("partly") / "sae").path
    x = normal(6, 10)
    x[2, 0] = np.inf  # inf * 0 is NaN for the first 24 features, and inf or -inf for the rest
    x[4, 0] = 3e38
    with SAESession(path, "cpu") as sparse, SAESession(path, "cpu", graphs="portable") as portable:
        for session in (sparse, portable):
            indices, values, l0 = session.top_features(x, k)
            assert (indices[2] == -1).all()
            assert np.isnan(values[2]).all()
            assert l0[2] == -1
            assert (l0[[0, 1, 3, 4, 5]] == 20).all()
        np.testing.assert_array_equal(*(session.top_features(x, k).indices for session in (sparse, portable)))


@pytest.mark.parametrize("graphs", ["cpu", "portable"])
def test_of_equally_strong_features_the_smaller_id_comes_first(tmp_path, graphs):
    sae = sae_of("standard")
    with torch.no_grad():
        sae.W_enc[:] = sae.W_enc[:, :6].repeat(1, 8)
        sae.b_enc[:] = sae.b_enc[:6].repeat(8)
    path, x = export(sae, tmp_path / "sae").path, normal(40, 10)
    with SAESession(path, "cpu", graphs=graphs) as session:
        acts = session.encode(x)
        for k in (1, 5, 11, 24, 48):
            order = np.argsort(-acts, axis=-1, kind="stable")[:, :k]
            values = np.take_along_axis(acts, order, -1)
            np.testing.assert_array_equal(session.top_features(x, k).indices, np.where(values == 0, -1, order))


def test_a_feature_that_is_named_twice_is_seen(artifact):
    reference = load_golden(read_artifact(artifact)).clean
    stages = Stages(lambda tokens, pre: np.maximum(pre, 0), lambda tokens, acts: None)
    acts = reference.original["hook_sae_acts_post"]
    indices = np.argsort(-acts, axis=1)
    values = np.take_along_axis(acts, indices, axis=1)
    indices[:, 1] = indices[:, 0]
    outputs = {"indices": indices, "values": values, "l0": (acts != 0).sum(axis=1)}
    fewer = {name: array[:, :1] if array.ndim > 1 else array for name, array in outputs.items()}
    verdicts = _judge_features("features", {16: outputs, 1: fewer}, reference, stages)
    assert any("indices name a feature twice" in failure for verdict in verdicts for failure in verdict.failures)
    none = {name: array[:, :0] if array.ndim > 1 else array for name, array in outputs.items()}
    failures = [
        f
        for verdict in _judge_features("features", {16: outputs, 1: none}, reference, stages)
        for f in verdict.failures
    ]
    assert "features: values is (16, 0) for k = 1, not (16, 1)." in failures

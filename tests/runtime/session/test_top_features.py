"""The sparse result: it is complete where `lossless` says so, and only there."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import InputError, SAESession, read_artifact
from runtime.parity.decisions import Stages
from runtime.parity.golden import load_golden
from runtime.parity.proof import _judge_features
from runtime.session.features import TopFeatures
from saeexport import export
from tests.support.breaking import edit_graph, failures_of, rewrite
from tests.support.samples import TINY, normal
from tests.support.zoo import sae_of


@pytest.fixture(scope="module", params=["standard", "abstopk", "jumprelu", "gated"])
def sae(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / request.param
    export(sae_of(request.param), path)
    with SAESession(path, "cpu") as session:
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


def test_a_repeated_index_after_the_last_feature_does_not_erase_it():
    found = TopFeatures(np.array([[3, 3]]), np.array([[2.0, 0.0]], np.float32), np.array([1]))
    np.testing.assert_array_equal(found.dense(4), [[0, 0, 0, 2]])


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_an_error(index):
    with pytest.raises(IndexError, match="d_sae is 4"):
        TopFeatures(np.array([[index]]), np.array([[1.0]]), np.array([1])).dense(4)


def features_gate(change):
    def on_model(model):
        graph = model.graph
        change(graph, {node.output[0]: node for node in graph.node})

    return edit_graph(on_model)


def weaker_first(graph, by_output):
    """Sort the strongest features in ascending order."""
    (sort,) = (node for node in graph.node if node.op_type == "TopK" and "values" in node.output)
    sort.attribute.append(onnx.helper.make_attribute("largest", 0))


def other_features(graph, by_output):
    """Return the id of the next feature for each feature."""
    (maker,) = (node for node in graph.node if "indices" in node.output)
    maker.output[list(maker.output).index("indices")] = "exact"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "one_beside"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(16), "all"))
    graph.node.append(onnx.helper.make_node("Add", ["exact", "one_beside"], ["beside"]))
    graph.node.append(onnx.helper.make_node("Mod", ["beside", "all"], ["indices"]))


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
    expected = f"{graph}: with k = 1, token 0 gets another feature or another l0 than with k = 16"
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
        (one_too_many, "l0 is not the number of features on for token 0"),
    ],
)
@pytest.mark.parametrize("graph", ["features", "features.sparse"])
def test_strongest_features_that_are_wrong(artifact, capsys, graph, change, reason):
    rewrite(artifact, f"{graph}.onnx", features_gate(change))
    assert f"{graph}: {reason}" in failures_of(artifact, capsys)


def test_a_feature_that_is_named_twice_is_seen(artifact):
    reference = load_golden(read_artifact(artifact)).clean
    stages = Stages(lambda tokens, pre: np.maximum(pre, 0), lambda tokens, acts: None)
    acts = reference.original["hook_sae_acts_post"]
    indices = np.argsort(-acts, axis=1)
    values = np.take_along_axis(acts, indices, axis=1)
    indices[:, 1] = indices[:, 0]
    outputs = {"indices": indices, "values": values, "l0": (acts != 0).sum(axis=1)}
    fewer = {name: array[:, :1] if array.ndim > 1 else array for name, array in outputs.items()}
    verdicts = _judge_features("features", outputs, fewer, reference, stages)
    assert any("indices name a feature twice" in failure for verdict in verdicts for failure in verdict.failures)
    none = {name: array[:, :0] if array.ndim > 1 else array for name, array in outputs.items()}
    failures = [
        f for verdict in _judge_features("features", outputs, none, reference, stages) for f in verdict.failures
    ]
    assert "features: values is (16, 0) for k = 1, not (16, 1)." in failures

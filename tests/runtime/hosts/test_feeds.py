"""What a caller gives is completed or refused, with an error that says what the host takes."""

import numpy as np
import pytest
import torch

from runtime import ArtifactError, HostSession, InputError, SAEError, UnknownHookError
from runtime.session.interventions import Clamp
from tests.support.grafted import PRE, Z, graft_tiny
from tests.support.wrong import NOT_A_NUMBER, NOT_A_PATH, accepted, feeds_of

IDS = np.array([[5, 11, 3], [2, 7, 0]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])


def test_what_follows_from_the_ids_may_be_left_out(host):
    whole = {
        "input_ids": IDS, "attention_mask": MASK, "position_ids": np.array([[0, 1, 2], [0, 1, 1]]),
        **{f"past_key_values.{i}.{what}": np.zeros((2, 4, 0, 4), np.float32)
           for i in range(3) for what in ("key", "value")},
    }  # fmt: skip
    expected = host(whole).logits
    np.testing.assert_array_equal(host({"input_ids": IDS, "attention_mask": MASK}).logits, expected)
    given = {"input_ids": torch.from_numpy(IDS.astype(np.int32)), "attention_mask": MASK.astype(bool)}
    np.testing.assert_array_equal(host(given).logits, expected)
    np.testing.assert_array_equal(host({"input_ids": IDS[:1]}).logits, host({"input_ids": IDS[:1].tolist()}).logits)


def test_a_later_part_of_a_sequence_counts_on(host):
    first = host({"input_ids": IDS[:1, :2]})
    cache = {name.replace("present", "past_key_values"): array for name, array in first.items() if name != "logits"}
    second = host({"input_ids": IDS[:1, 2:], **cache})
    np.testing.assert_allclose(second.logits[0, 0], host({"input_ids": IDS[:1]}).logits[0, 2], atol=1e-5)
    top = host.top_features({"input_ids": IDS[:1, 2:], **cache}, PRE, 3)
    assert (top.indices == host.top_features({"input_ids": IDS[:1]}, PRE, 3).indices[:, 2:]).all()


def test_wrong_feeds_are_refused(host):
    calls = (host, host.encode, host.run_with_cache, host.run_with_hooks_with_saes, lambda x: host.top_features(x, PRE))
    for call in calls:
        assert accepted(call, feeds_of("input_ids")) == []


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"The host also needs input_ids, attention_mask, position_ids, past_key_values.0.key, "),
        ({"ids": IDS}, r"The host does not take ids; it takes input_ids, attention_mask, "),
        ({"input_ids": IDS[0]}, r"input_ids is \(3,\) int64; the host takes \['batch', 'seq'\] int64"),
        ({"input_ids": IDS * 0.5}, r"input_ids is \(2, 3\) float64; the host takes .* Pass x.astype\('int64'\)"),
        ({"input_ids": IDS, "position_ids": IDS[:1]}, "must be 2 like input_ids"),
        ({"input_ids": IDS.astype(np.uint64) + 2**63}, "input_ids has values from"),
        (
            {"input_ids": IDS, "attention_mask": np.ones((2, 5), np.int64), "position_ids": IDS},
            r"attention_mask is \(2, 5\), and input_ids is \(2, 3\); without tokens in the cache, each token has one",
        ),
        ({"input_ids": IDS - 1}, "input_ids has the id -1; ids of tokens count from 0"),
    ],
)
def test_the_error_says_what_the_host_takes(host, feeds, message):
    with pytest.raises(InputError, match=message):
        host(feeds)


def test_wrong_arguments_are_refused(host, grafted, feeds):
    wrong_hooks = [3, ["unknown"], "unknown", [None], {1: 2}, object()]
    for call in (lambda saes: host.run_with_saes(feeds, saes), lambda saes: host.saes(saes).__enter__(),
                 host.add_sae, host.reset_saes, host.sae):  # fmt: skip
        assert accepted(call, wrong_hooks) == []
    assert accepted(lambda value: host.run_with_saes(feeds, PRE, value), ["yes", 1, np.array([True])]) == []
    assert accepted(lambda k: host.top_features(feeds, PRE, k), [*NOT_A_NUMBER, 0, 25]) == []
    edits = [3, None, {"unknown": {}}, {PRE: 3}, {PRE: {99: Clamp(1)}}, {PRE: {1: 2.0}}, {3: {}}, [(PRE, {})]]
    assert accepted(lambda given: host.steering(given).__enter__(), edits) == []
    assert accepted(HostSession, NOT_A_PATH) == []
    assert accepted(lambda n: HostSession(grafted.path, "cpu", threads=n), [0, "two", 1.5, 10**6]) == []
    assert accepted(lambda device: HostSession(grafted.path, device), ["gpu", None, 3, "cuda:x", "tensorrt"]) == []
    assert accepted(lambda hooks: host.run_with_hooks_with_saes(feeds, hooks), [3, [3], [(PRE, 3)], [(3, print)]]) == []
    assert host.attached == {}


def test_wrong_graphs_are_refused(host, feeds):
    with pytest.raises(ArtifactError, match="has no graph 'model'; it has tap, splice, features, "):
        host.run_graph("model", {})
    with pytest.raises(InputError, match="'tap' has no inputs blocks.1.hook_resid_pre.attach; it has input_ids, "):
        host.run_graph("tap", {f"{PRE}.attach": np.array(True)})
    with pytest.raises(InputError, match="'splice' has no outputs nothing; it has logits, "):
        host.run_graph("splice", feeds, ["nothing"])
    with pytest.raises(InputError, match="'tap' also needs the inputs attention_mask, position_ids, "):
        host.run_graph("tap", {"input_ids": IDS})
    with pytest.raises(SAEError, match="ONNX Runtime cannot run 'splice' on cpu"):
        host({"input_ids": np.array([[1000]])})


def test_a_host_without_a_splice_taps_only(tmp_path):
    grafted = graft_tiny(tmp_path, [PRE, Z], modes=["tap"])
    feeds = {"input_ids": IDS, "attention_mask": MASK}
    with HostSession(grafted.path, "cpu") as host:
        assert list(host.run_with_cache(feeds)[1]) == [PRE, Z]
        assert list(host.encode(feeds)) == [PRE, Z]
        for call in (lambda: host.add_sae(PRE), lambda: host.steering({PRE: {}}).__enter__()):
            with pytest.raises(ArtifactError, match="does not have the graph 'splice', in which SAEs are attached"):
                call()
        with pytest.raises(ArtifactError, match="does not have the stages of the host"):
            host.run_with_hooks_with_saes(feeds, [(PRE, lambda x, hook: None)])


def test_a_host_for_features_only_encodes_only(tmp_path):
    grafted = graft_tiny(tmp_path, [PRE], modes=["features"])
    with HostSession(grafted.path, "cpu") as host:
        assert host.top_features({"input_ids": IDS}, k=2).indices.shape == (2, 3, 2)
        # On another machine the activations that the SAE reads differ by rounding.
        assert host.host.manifest.parity.inputs[PRE].budget > 0
        with pytest.raises(ArtifactError, match="none of which computes the outputs of the host"):
            host({"input_ids": IDS})


def test_an_unknown_hook_is_a_key_error(host):
    with pytest.raises(UnknownHookError, match=r"'blocks.7': no SAE was grafted at such a hook. There are blocks.0"):
        host.sae("blocks.7")

"""Watched features have the activations that `encode` gives them, within the budgets of the artifact."""

import copy
import gc
import threading
import weakref

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import (
    Ablate,
    Add,
    ArtifactError,
    Clamp,
    FeatureWatch,
    InputError,
    IntegrityError,
    SAEError,
    SAESession,
    Scale,
    Tensor,
)
from runtime.arrays.dtypes import widened
from runtime.parity.golden import load_golden
from runtime.parity.judge import judge
from runtime.parity.proof import _follow, _GraphProof
from runtime.session.session import KEPT_WATCHES
from saeexport import HookedSAE, export
from tests.support.breaking import edit_weight, rewrite
from tests.support.samples import HOOKS, TINY, make_sae, normal
from tests.support.simulated_cuda import DeviceArray, taken_by
from tests.support.zoo import CASES, D_IN, D_SAE, sae_of

INPUT, _, POST, *_ = HOOKS
WITHOUT_THE_OTHERS = [(name, more) for name, more in CASES if "topk" not in name]
IDS = [3, 1, 14, 3]


def watched(session, x, ids):
    """Return the activations of features, watched a few at a time in another order than they were asked for."""
    acts = np.empty((len(x), len(ids)), session.b_dec.dtype)
    order = np.random.default_rng(7).permutation(len(ids))
    for part in np.array_split(order, 3):
        acts[:, part] = session.watch(np.asarray(ids)[part])(x)
    return acts


@pytest.mark.parametrize("d_in", [1, 64, 768])
def test_one_feature_is_as_exact_as_all_of_them(tmp_path, d_in):
    """Its product has a single column, for which ONNX Runtime has another kernel."""
    for seed in range(3):
        sae, x = make_sae(d_in, 32, seed=seed), normal(200, d_in, seed=seed)
        with torch.no_grad():
            truth = sae.double().encode(torch.from_numpy(x).double()).numpy()
        with SAESession(export(sae.float(), tmp_path / f"{d_in}-{seed}", x), "cpu") as session:
            whole = np.abs(session.encode(x) - truth)
            for tokens in (200, 1):
                one = np.stack([session.watch([j])(x[:tokens])[:, 0] for j in range(32)], axis=1)
                assert np.abs(one - truth[:tokens]).max() <= 2 * whole.max()


@pytest.mark.parametrize(
    ("architecture", "more", "dtype"),
    [(*case, "float32") for case in WITHOUT_THE_OTHERS]
    + [(name, {}, dtype) for name in ("standard", "jumprelu", "gated") for dtype in ("float16", "bfloat16")],
)
def test_every_feature_is_within_the_budgets(artifact_of, architecture, more, dtype):
    artifact = artifact_of(architecture, dtype, **more)
    golden = load_golden(artifact)
    with SAESession(artifact.path, "cpu") as session:
        proof = _GraphProof(artifact.manifest, golden, lambda graph, feeds, _: wide(session.run_graph(graph, feeds)))
        acts = watched(session, golden.original[INPUT].astype(session.b_dec.dtype), range(D_SAE))
        outputs = wide({POST: acts})
        followed = _follow(outputs, golden.clean, proof.stages_for("" if dtype == "float32" else ".wide"))
    (verdict,) = judge("watch", [POST], outputs, followed)
    assert not verdict.failures
    outputs[POST].flat[golden.original[POST].argmax()] *= 2
    (verdict,) = judge("watch", [POST], outputs, followed)
    assert verdict.failures


def wide(outputs):
    return {name: widened(np.asarray(output)) for name, output in outputs.items()}


@pytest.fixture(scope="module", params=["standard", "jumprelu", "gated"])
def sae(request, artifact_of):
    with SAESession(artifact_of(request.param).path, "cpu") as opened:
        yield opened


def close_to_encode(session, x, ids):
    """Compare with `encode`; both multiply in float32, with kernels of other widths."""
    acts, wanted = session.compute_features(x, ids), session.encode(x)[..., ids]
    assert (acts.shape, acts.dtype) == (wanted.shape, wanted.dtype)
    scale = np.nanmax(np.abs(x), initial=1.0, where=np.isfinite(x)) * D_IN
    np.testing.assert_allclose(acts, wanted, rtol=1e-5, atol=1e-6 * scale)
    return acts


@pytest.mark.parametrize("lead", [(), (0,), (1,), (40,), (2, 3)])
@pytest.mark.parametrize("ids", [[0], IDS, list(range(D_SAE)), np.arange(D_SAE, dtype=np.uint8)[::-5]])
def test_the_shape_of_the_tokens_and_the_order_of_the_ids(sae, lead, ids):
    close_to_encode(sae, normal(*lead, D_IN), ids)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, D_SAE - 1), min_size=1, max_size=6), tokens=st.integers(0, 9),
    scale=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 30.0]), outlier=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_batch_makes_a_difference(sae, ids, tokens, scale, outlier, seed):
    x = normal(tokens, D_IN, seed=seed) * np.float32(scale)
    if outlier:
        x[..., 2] *= 1000
    close_to_encode(sae, x, ids)


def test_a_token_that_is_not_finite_does_not_touch_the_others(sae):
    x = normal(4, D_IN)
    clean = sae.compute_features(x, IDS)
    x[1, 0], x[2, 0] = np.nan, np.inf
    acts = sae.compute_features(x, IDS)
    np.testing.assert_array_equal(acts[[0, 3]], clean[[0, 3]])
    np.testing.assert_array_equal(np.isnan(acts), np.isnan(sae.encode(x)[:, IDS]))


def test_a_preactivation_at_its_threshold_is_off(tmp_path):
    sae = sae_of("jumprelu", apply_b_dec_to_input=False)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D_IN, D_SAE))
        sae.b_enc.zero_()
        sae.threshold.fill_(0.5)
    x = np.full((1, D_IN), 0.5, np.float32)
    x[0, 1] = np.nextafter(np.float32(0.5), np.float32(1))
    export(sae, tmp_path / "sae", normal(40, D_IN))
    with SAESession(tmp_path / "sae", "cpu") as session:
        np.testing.assert_array_equal(session.compute_features(x, [0, 1, 2]), [[0, x[0, 1], 0]])


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "topk_transcoder"])
def test_features_that_compete_are_refused(tmp_path, architecture):
    export(sae_of(architecture), tmp_path / "sae")
    with SAESession(tmp_path / "sae", "cpu") as session:
        for call in (lambda: session.watch([1]), lambda: session.compute_features(normal(3, D_IN), [1])):
            with pytest.raises(InputError, match=rf"of this {architecture} SAE .* without the others: .*top_features"):
                call()


class Sigmoid(HookedSAE):
    def activation(self, acts_pre, x):
        return torch.sigmoid(acts_pre) * (acts_pre > 0)


class Softmax(HookedSAE):
    def activation(self, acts_pre, x):
        return torch.relu(acts_pre) * torch.softmax(acts_pre, -1)


class Norm(HookedSAE):
    def preactivations(self, x):
        acts_pre = super().preactivations(x)
        return acts_pre / acts_pre.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("kind", "refused"), [(Sigmoid, False), (Softmax, True), (Norm, True)])
def test_the_graph_of_a_custom_class_decides(tmp_path, kind, refused):
    sae = make_sae(D_IN, D_SAE)
    custom = kind(sae.cfg)
    custom.load_state_dict(sae.state_dict())
    export(custom, tmp_path / "sae", normal(40, D_IN))
    with SAESession(tmp_path / "sae", "cpu") as session:
        if refused:
            with pytest.raises(InputError, match=f"of this custom:{kind.__name__} SAE"):
                session.watch(IDS)
        else:
            assert close_to_encode(session, normal(5, D_IN), IDS).any()


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_int8_weights(tmp_path, architecture):
    export(sae_of(architecture), tmp_path / "sae", weights="int8")
    with SAESession(tmp_path / "sae", "cpu") as session:
        close_to_encode(session, normal(6, D_IN), list(range(D_SAE))[::-1])


def test_as_many_features_as_inputs(tmp_path):
    """Which axis is that of the features does not follow from the sizes."""
    export(make_sae(8, 8), tmp_path / "sae", normal(40, 8))
    with SAESession(tmp_path / "sae", "cpu") as session:
        acts, x = session.compute_features(normal(9, 8), [5, 0, 2]), normal(9, 8)
        np.testing.assert_allclose(acts, session.encode(x)[:, [5, 0, 2]], atol=1e-5)


@pytest.mark.parametrize("more", [{"graphs": "portable"}, {"block_tokens": 2}, {"threads": 1}, {"arena": False}])
def test_options_of_the_session(more):
    x = normal(7, 6)
    with SAESession(TINY, "cpu", **more) as session:
        np.testing.assert_allclose(session.watch(IDS)(x), session.encode(x)[:, IDS], atol=1e-5)


def test_heads_and_dtypes_of_the_caller(session):
    x = normal(2, 5, 6)
    acts = session.watch(IDS)
    np.testing.assert_array_equal(acts(x.reshape(2, 5, 2, 3)), acts(x))
    assert acts(x.astype(np.float16)).dtype == np.float32
    assert isinstance(acts(torch.from_numpy(x)), np.ndarray)


EDITS = {1: Ablate(), 3: Clamp(2.5), 7: Clamp(-4.0), 14: Add(0.75)}


def test_steering_edits_them(session):
    x, values = normal(2, 3, 6), normal(2, 3, seed=4)
    acts = session.watch([14, 3, 2, 3, 1])
    with session.steering(EDITS), session.steering({3: Scale(2.0)}):
        edited, wanted = acts(x), session.encode(x)[..., acts.ids]
    np.testing.assert_allclose(edited, wanted, atol=1e-5)
    assert (edited[..., 1] == 5.0).all()
    assert (edited[..., 4] == 0.0).all()
    with session.steering({3: Clamp(values)}):
        np.testing.assert_array_equal(session.compute_features(x, [2, 3])[..., 1], values)
    np.testing.assert_allclose(acts(x), session.encode(x)[..., acts.ids], atol=1e-5)


# On a device


@pytest.mark.parametrize("cuda_graph", [(), (1, 4)])
def test_on_a_gpu(machine, expected, cuda_graph):
    with SAESession(TINY, "cuda", cuda_graph=cuda_graph) as sae:
        first, second = sae.watch(IDS), sae.watch([5, 2])
        for x in (normal(4, 6), normal(1, 6), normal(3, 6), normal(4, 6, seed=2)):
            for acts in (first, second):
                wanted = expected.watch(acts.ids)(x)
                array = DeviceArray(machine, x)
                on_card = acts(array)
                assert (type(on_card), on_card.device) == (Tensor, "cuda:0")
                assert np.array_equal(taken_by(machine, on_card), wanted)
                assert np.array_equal(acts(x), wanted)
        with sae.steering({3: Clamp(2.0)}):
            assert (first(DeviceArray(machine, normal(4, 6))).numpy()[:, 0] == 2.0).all()


def test_captures_end_with_the_watch(machine):
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        acts = sae.watch(IDS)
        acts(normal(1, 6))
        session = weakref.ref(machine.sessions.pop())
        del acts
        gc.collect()
        assert session() is None


def test_with_tensorrt_it_runs_on_cuda(machine, expected, monkeypatch):
    monkeypatch.setattr("runtime.devices.select.tensorrt_version", lambda: "10.9", raising=False)
    with SAESession(TINY, "tensorrt") as sae:
        assert np.array_equal(sae.watch(IDS)(normal(2, 6)), expected.watch(IDS)(normal(2, 6)))
        assert machine.sessions[-1].provider == "CUDAExecutionProvider"


# Life


def test_the_last_lists_of_ids_are_kept(session, monkeypatch):
    made = []
    monkeypatch.setattr("runtime.session.session.FeatureWatch", lambda *args: made.append(1) or FeatureWatch(*args))
    x = normal(2, 6)
    for _ in range(2):
        for first in range(KEPT_WATCHES):
            np.testing.assert_allclose(session.compute_features(x, [first]), session.encode(x)[:, [first]], atol=1e-6)
    assert len(made) == KEPT_WATCHES
    session.compute_features(x, [15])
    session.compute_features(x, np.array([7], np.int32))
    assert len(made) == KEPT_WATCHES + 1
    session.compute_features(x, [0])
    assert len(made) == KEPT_WATCHES + 2


def test_after_the_session_was_closed(machine):
    for device in ("cpu", "cuda"):
        session = SAESession(TINY, device)
        acts = session.watch(IDS)
        session.close()
        for call in (lambda: acts(normal(2, 6)), lambda: session.watch([1])):  # noqa: B023
            with pytest.raises(SAEError, match="is closed"):
                call()


def test_threads_share_it(session):
    x, acts = normal(8, 6), session.watch(IDS)
    wanted, found = acts(x), []

    def call():
        found.extend(np.array_equal(acts(x), wanted) for _ in range(50))
        found.append(np.array_equal(session.compute_features(x, [3]), wanted[:, :1]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * 51
    assert all(found)


def test_its_ids_and_its_text(session):
    ids = np.array([4, 2])
    acts = session.watch(ids)
    ids[0] = 5
    assert acts.ids.tolist() == [4, 2]
    assert repr(acts) == "FeatureWatch([4, 2])"
    with pytest.raises(ValueError, match="read-only"):
        acts.ids[0] = 1
    with pytest.raises(InputError, match="Copy the session"):
        copy.deepcopy(acts)


def test_weights_that_were_changed_are_refused(artifact):
    edit_weight("W_enc", (0, 0), 2.0)(artifact / "weights.safetensors")
    with SAESession(artifact, "cpu") as session, pytest.raises(IntegrityError, match="sha256"):
        session.watch(IDS)
    with SAESession(artifact, "cpu", check_integrity=False) as session:
        assert session.watch(IDS)(normal(2, 6)).shape == (2, 4)


def test_a_graph_that_onnx_runtime_refuses(artifact):
    def change(path):
        model = onnx.load_model(path, load_external_data=False)
        model.opset_import[0].version = 99
        path.write_bytes(model.SerializeToString())

    rewrite(artifact, "encode.onnx", change)
    with SAESession(artifact, "cpu") as session, pytest.raises(ArtifactError, match="cannot load .*encode.onnx on cpu"):
        session.watch(IDS)


def test_ids_that_change_during_the_call_are_not_kept_for_others(session):
    class Changing(list):
        def __iter__(self):
            return iter(super().__iter__())

        def __array__(self, dtype=None, copy=None):
            self.reads = getattr(self, "reads", 0) + 1
            return np.array([3] if self.reads == 1 else [5], dtype)

    x = normal(4, 6)
    session.compute_features(x, Changing([3]))
    np.testing.assert_allclose(session.compute_features(x, [3]), session.encode(x)[:, [3]], atol=1e-6)

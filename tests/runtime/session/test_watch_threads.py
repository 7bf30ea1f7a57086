"""A watch computes few tokens on one thread and more on several, which makes no difference to the results."""

import threading

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import IntegrityError, SAEError, SAESession
from runtime.devices.cpu import CpuBackend
from runtime.session import selection
from saeexport import export
from saeexport.original.architectures import ARCHITECTURES
from tests.support.breaking import edit_weight
from tests.support.samples import TINY, normal
from tests.support.zoo import D_IN, D_SAE, sae_of

IDS = [3, 1, 14, 3]
MANY = 5
"""Smallest number of tokens that the SAEs of these tests compute on several threads."""


@pytest.fixture(autouse=True)
def few_multiplications(monkeypatch):
    monkeypatch.setattr(selection, "ONE_THREAD", MANY * 6 * selection.FEWEST_COLUMNS)
    monkeypatch.setattr(selection, "thread_limit", lambda: 2)


@pytest.fixture
def started(monkeypatch):
    """The models of the sessions that are started for a watch, and whether each has one thread."""
    found, load = [], CpuBackend.load_model

    def load_model(self, model, one_thread):
        found.append((onnx.load_from_string(model), one_thread))
        return load(self, model, one_thread)

    monkeypatch.setattr(CpuBackend, "load_model", load_model)
    return found


def threads_of(started):
    return [one_thread for _, one_thread in started]


def test_each_session_is_started_when_it_is_needed(started):
    with SAESession(TINY, "cpu") as session:
        acts = session.watch(IDS)
        for tokens, expected in ((1, [True]), (MANY - 1, [True]), (MANY, [True, False]), (2, [True, False])):
            x = normal(tokens, 6)
            np.testing.assert_allclose(acts(x), session.encode(x)[:, IDS], atol=1e-6)
            assert threads_of(started) == expected


@pytest.mark.parametrize("more", [{"threads": 1}, {"threads": 2}, {"threads": 4}])
def test_a_number_of_threads_that_the_user_chose_is_kept(started, more):
    with SAESession(TINY, "cpu", **more) as session:
        acts = session.watch(IDS)
        for tokens in (1, MANY, 40):
            acts(normal(tokens, 6))
    assert threads_of(started) == [False]


def test_one_core_needs_one_session(started, monkeypatch):
    monkeypatch.setattr(selection, "thread_limit", lambda: 1)
    with SAESession(TINY, "cpu") as session:
        acts = session.watch(IDS)
        for tokens in (0, 1, 40):
            acts(normal(tokens, 6))
    assert threads_of(started) == [False]


@pytest.mark.parametrize("m", [1, 64, 1024])
def test_more_features_need_several_threads_sooner(m, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(selection, "thread_limit", lambda: 2)
    with SAESession(TINY, "cpu") as session:
        cfg, cpu = session.cfg, session._graphs._device
        many = selection.tokens_for_threads(cfg, cpu, m, None)
        assert many * cfg.d_in * max(m, selection.FEWEST_COLUMNS) <= selection.ONE_THREAD
        assert many >= selection.tokens_for_threads(cfg, cpu, 2 * m, None)
        assert selection.tokens_for_threads(cfg, cpu, selection.ONE_THREAD, None) is None
        assert selection.tokens_for_threads(cfg, cpu, m, 2) is None


def test_the_input_is_not_copied_for_the_bias(started):
    """`acts` appends the bias to the matrix, which costs a copy of the input for each call."""
    assert "Pad" in [node.op_type for node in onnx.load(TINY / "acts.onnx", load_external_data=False).graph.node]
    with SAESession(TINY, "cpu") as session:
        session.watch(IDS)
    ((model, _),) = started
    assert "Pad" not in [node.op_type for node in model.graph.node]


@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if "topk" not in name])
def sae(request, tmp_path_factory):
    path = export(sae_of(request.param), tmp_path_factory.mktemp("threads") / "sae").path
    with SAESession(path, "cpu", threads=2) as several, SAESession(path, "cpu") as opened:
        yield opened, several


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 3 * MANY), ids=st.lists(st.integers(0, D_SAE - 1), min_size=1, max_size=6),
    spoiled=st.dictionaries(st.integers(0, 3 * MANY), st.sampled_from([np.nan, np.inf, -np.inf]), max_size=3),
    scale=st.sampled_from([0.0, 0.3, 30.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_token_notices_the_others_or_the_threads(sae, tokens, ids, spoiled, scale, seed):
    opened, several = sae
    x = normal(tokens, D_IN, seed=seed) * np.float32(scale)
    clean = opened.compute_features(x, ids)
    for row, value in spoiled.items():
        if row < tokens:
            x[row, seed % D_IN] = value
    finite = np.isfinite(x).all(axis=1)
    acts = opened.compute_features(x, ids)
    np.testing.assert_array_equal(acts[finite], clean[finite])
    np.testing.assert_array_equal(np.isnan(acts), np.isnan(opened.encode(x)[:, ids]))
    np.testing.assert_allclose(acts[finite], several.compute_features(x, ids)[finite], rtol=1e-5, atol=1e-4)


def test_two_threads_start_the_second_session_once(started):
    with SAESession(TINY, "cpu") as session:
        acts, x = session.watch(IDS), normal(40, 6)
        wanted, found = session.encode(x)[:, IDS], []
        threads = [threading.Thread(target=lambda: found.append(acts(x))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert threads_of(started) == [True, False]
        assert len(found) == 4
        for each in found:
            np.testing.assert_allclose(each, wanted, atol=1e-6)


def test_the_second_session_is_not_started_from_changed_weights(artifact):
    with SAESession(artifact, "cpu") as session:
        acts = session.watch(IDS)
        edit_weight("W_enc", (0, 0), 2.0)(artifact / "weights.safetensors")
        acts(normal(2, 6))
        with pytest.raises(IntegrityError):
            acts(normal(40, 6))


def test_none_is_started_after_the_session_was_closed():
    session = SAESession(TINY, "cpu")
    acts = session.watch(IDS)
    session.close()
    for tokens in (1, 40):
        with pytest.raises(SAEError, match="is closed"):
            acts(normal(tokens, 6))

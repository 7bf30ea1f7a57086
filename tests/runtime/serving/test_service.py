"""Requests by name: what they compute, what is refused and with which status, and what is observed."""

import asyncio
import threading

import numpy as np
import pytest

from runtime import Clamp, InputError, LimitError, SAEError, SAESession, UnknownHookError
from runtime.serving.service import Limits, Service, http_status
from saeexport import export
from tests.support.samples import HOOKS, TINY, normal
from tests.support.wrong import NOT_A_NUMBER, accepted, arrays_of
from tests.support.zoo import D_IN, D_OUT, sae_of

WIDTH = 6


@pytest.fixture
def seen():
    return []


@pytest.fixture
def service(session, seen):
    return Service(session, observe=seen.append)


def clamp(feature, value):
    return {
        "feature_ids": np.array([feature]),
        "feature_scale": np.zeros((1, 1), np.float32),
        "feature_shift": np.full((1, 1), value, np.float32),
    }


@pytest.mark.parametrize("lead", [(5,), (2, 3), (0,), ()])
def test_each_output_is_that_of_the_session(service, session, lead):
    x = normal(*lead, WIDTH)
    top = session.top_features(x, 4)
    expected = {**session.compute(x, HOOKS), "indices": top.indices, "values": top.values, "l0": top.l0}
    assert [spec.name for spec in service.outputs] == list(expected)
    for names in (["l0"], HOOKS, ["values", "hook_sae_recons", "indices"], list(expected)):
        found = service.answer({"input": x, "k": np.array([4])}, names)
        assert list(found) == names
        for name in names:
            assert np.array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype


def test_without_outputs_the_activations_are_meant(service, session):
    x = normal(3, WIDTH)
    (found,) = service.answer({"input": x}).items()
    assert found[0] == "hook_sae_acts_post"
    assert np.array_equal(found[1], session.encode(x))


def test_edits_are_those_of_the_session(service, session):
    x = normal(3, WIDTH)
    expected, cache = session.steer(x, {7: Clamp(5.0)})
    found = service.answer({"input": x, **clamp(7, 5.0), "k": np.array([2])}, ["hook_sae_output", "values"])
    assert np.array_equal(found["hook_sae_output"], expected)
    assert found["values"].max() == cache["hook_sae_acts_post"].max() == 5


def test_the_target_of_a_transcoder_is_passed_on(tmp_path):
    path = export(sae_of("transcoder", use_error_term=True), tmp_path / "sae").path
    with SAESession(path, "cpu") as session:
        service, x, target = Service(session), normal(3, D_IN), normal(3, D_OUT)
        service.warm_up(HOOKS)
        found = service.answer({"input": x, "target": target}, ["hook_sae_error"])
        assert np.array_equal(found["hook_sae_error"], session.compute(x, ["hook_sae_error"], target)["hook_sae_error"])
        with pytest.raises(InputError, match="pass target="):
            service.answer({"input": x}, ["hook_sae_error"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({}, [], "needs the input input; it has none"),
        (
            {"input": normal(2, WIDTH), "x": normal(1)},
            [],
            "no input x; there are input, feature_ids",
        ),
        ({"input": normal(2, WIDTH)}, ["hook_sae_middle"], "no output hook_sae_middle; there are hook_sae_input"),
        ({"input": normal(2, WIDTH)}, ["indices"], "needs the input k"),
        ({"input": normal(2, WIDTH), "k": np.array([1.5])}, ["indices"], "k is .* it must be one whole number"),
        ({"input": normal(2, WIDTH), "k": np.array([0])}, ["indices"], "k is 0; it must be from 1 to d_sae"),
        ({"input": normal(2, WIDTH), "k": np.array([1, 2])}, ["l0"], "it must be one whole number"),
        ({"input": normal(2, WIDTH + 1)}, [], r"has shape \(2, 7\)"),
        ({"input": normal(2, WIDTH), "feature_ids": np.array([1])}, [], "needs the input feature_scale, feature_shift"),
        ({"input": normal(2, WIDTH), **clamp(99, 1.0)}, [], "no feature 99"),
    ],
)
def test_what_is_wrong_is_said_and_is_the_callers_mistake(service, seen, inputs, outputs, message):
    with pytest.raises(InputError, match=message) as caught:
        service.answer(inputs, outputs)
    assert http_status(caught.value) == 400
    assert [(one.status, one.tokens, one.l0) for one in seen] == [(400, 0, None)]


def test_no_array_gets_past_the_checks(service):
    wrong = arrays_of(WIDTH)
    wrong_k = [k for k in NOT_A_NUMBER if not isinstance(k, list)]  # one number in a list is one whole number
    assert accepted(lambda x: service.answer({"input": x}), wrong) == []
    assert accepted(lambda k: service.answer({"input": normal(2, WIDTH), "k": k}, ["l0"]), wrong_k) == []


def test_a_request_at_the_limit_is_answered_and_one_above_it_is_refused(session, seen):
    x = normal(5, WIDTH)
    Service(session, Limits(tokens=5)).answer({"input": x})
    with pytest.raises(LimitError, match="has 5 tokens; this service takes 4. Send fewer") as caught:
        Service(session, Limits(tokens=4), seen.append).answer({"input": x})
    assert http_status(caught.value) == 413
    assert seen[0].status == 413
    for outputs, nbytes in (
        (HOOKS, 5 * (2 * 16 + 4 * 6) * 4),
        (["indices"], 5 * 3 * 8),
        (["values"], 5 * 3 * 4),
        (["l0"], 5 * 8),
    ):
        inputs = {"input": x, "k": np.array([3])}
        found = Service(session, Limits(output_bytes=nbytes)).answer(inputs, outputs)
        assert sum(array.nbytes for array in found.values()) == nbytes
        with pytest.raises(LimitError, match=f"would have {nbytes:,} bytes"):
            Service(session, Limits(output_bytes=nbytes - 1)).answer(inputs, outputs)


def test_limits_are_whole_numbers_from_one_on():
    assert accepted(lambda n: Limits(tokens=n), [*NOT_A_NUMBER, 0, -1]) == []
    assert accepted(lambda n: Limits(output_bytes=n), [*NOT_A_NUMBER, 0, -1]) == []


def test_the_status_of_errors():
    statuses = {
        error: http_status(error("")) for error in (LimitError, InputError, UnknownHookError, SAEError, OSError)
    }
    assert list(statuses.values()) == [413, 400, 400, 500, 500]


def test_a_failure_that_is_not_the_callers_is_observed_and_raised(session, seen):
    session.close()
    with pytest.raises(SAEError, match="is closed"):
        Service(session, observe=seen.append).answer({"input": normal(2, WIDTH)})
    assert [one.status for one in seen] == [500]


def test_observations_have_tokens_l0_and_rows_that_are_not_finite(service, session, seen):
    x = normal(2, 3, WIDTH)
    x[0, 1, 2], x[1, 0, 0] = np.nan, np.inf
    l0 = (session.encode(normal(2, 3, WIDTH)) != 0).sum(axis=-1)
    for outputs in (["hook_sae_acts_post"], ["l0"], ["hook_sae_output"]):
        service.answer({"input": x, "k": np.array([16])}, outputs)
    for one in seen:
        assert (one.status, one.tokens, one.not_finite) == (200, 6, 2)
        assert 0 < one.seconds < 60
    acts, features, output = (one.l0 for one in seen)
    assert output is None
    assert np.array_equal(acts, features)
    assert set(np.delete(l0.reshape(-1), [1, 3])) <= set(acts.tolist())
    service.answer({"input": x, **clamp(7, 5.0)})
    assert seen[-1].l0 is None


def test_warming_up_loads_the_graphs_of_the_requests_and_is_not_observed(session, seen):
    service = Service(session, observe=seen.append)
    service.warm_up()
    loaded = set(session._graphs.loaded)
    assert loaded == {"acts", "features.sparse"}
    service.warm_up(HOOKS, ["hook_sae_acts_pre"])
    assert set(session._graphs.loaded) - loaded == {"model.sparse", "encode"}
    assert seen == []
    with pytest.raises(InputError, match="no output middle"):
        service.warm_up(["middle"])


def test_requests_from_several_threads_and_from_an_event_loop(service, session):
    x = [normal(3, WIDTH, seed=i) for i in range(8)]
    expected = [session.encode(one) for one in x]

    async def all_at_once():
        return await asyncio.gather(*(asyncio.to_thread(service.answer, {"input": one}) for one in x))

    for found, wanted in zip(asyncio.run(all_at_once()), expected, strict=True):
        assert np.array_equal(found["hook_sae_acts_post"], wanted)
    assert threading.active_count() < 64


def test_an_artifact_in_half_precision(half):
    with SAESession(half, "cpu") as session:
        service = Service(session)
        service.warm_up()
        x = np.ones((2, 6), session.cfg.dtype)
        x[0, 0] = np.nan
        seen = []
        Service(session, observe=seen.append).answer({"input": x})
        assert (seen[0].not_finite, len(seen[0].l0)) == (1, 1)


def test_tiny_is_what_these_tests_are_about():
    with SAESession(TINY, "cpu") as session:
        assert (session.cfg.d_in, session.cfg.d_sae) == (WIDTH, 16)


@pytest.mark.parametrize("k", [-(10**9), 0, 17])
def test_a_wrong_k_is_refused_before_anything_is_computed(session, seen, monkeypatch, k):
    """A negative number must not make the answer look small."""
    service = Service(session, Limits(output_bytes=100), seen.append)
    monkeypatch.setattr(SAESession, "compute", lambda *_: pytest.fail("the hooks were computed"))
    with pytest.raises(InputError, match=f"k is {k}; it must be from 1 to d_sae = 16"):
        service.answer({"input": normal(50, WIDTH), "k": np.array([k])}, ["hook_sae_acts_post", "indices"])
    assert [observation.status for observation in seen] == [400]

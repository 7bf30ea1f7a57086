"""Inside steering(), encode and top_features return the edited activations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Ablate, Add, Clamp, InputError, Intervention, SAESession, Scale, Tensor
from runtime.session.features import strongest_features
from saeexport.original.running import torch_hook
from tests.support.samples import HOOKS, TINY, normal
from tests.support.simulated_cuda import DeviceArray
from tests.support.zoo import sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
EDITS = {1: Ablate(), 3: Clamp(2.5), 4: Scale(-3.0), 5: Add(0.75), 7: Clamp(-4.0)}


@pytest.fixture(scope="module", params=["standard", "abstopk", "gated", "transcoder"])
def pair(request, artifact_of):
    """An SAE with the error term, and a session; a transcoder's features need no target."""
    with SAESession(artifact_of(request.param, use_error_term=True).path, "cpu") as session:
        yield sae_of(request.param, use_error_term=True), session


def acts_of_the_original(sae, x, *interventions):
    acts = sae.encode(torch.from_numpy(x)).detach()
    for edits in interventions:
        acts = torch_hook(Intervention.of(edits))(acts, None)
    return acts.numpy()


@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 3)])
def test_encode_is_edited_as_a_hook_would(pair, lead):
    sae, session = pair
    x = normal(*lead, 10)
    with session.steering(EDITS):
        acts = session.encode(x)
    np.testing.assert_allclose(acts, acts_of_the_original(sae, x, EDITS), rtol=0, atol=1e-5)
    clean = session.encode(x)
    np.testing.assert_array_equal(acts, Intervention.of(EDITS)(clean))
    assert not lead or not acts.size or (acts != clean).any()


def test_nested_blocks_edit_one_after_the_other(pair):
    sae, session = pair
    x = normal(6, 10)
    with session.steering(EDITS), session.steering({3: Scale(2.0), 5: Clamp(1.0)}):
        acts, found = session.encode(x), session.top_features(x, 48)
    assert (acts[:, 3] == 5.0).all()
    np.testing.assert_allclose(acts, acts_of_the_original(sae, x, EDITS, {3: Scale(2.0), 5: Clamp(1.0)}), atol=1e-5)
    np.testing.assert_array_equal(found.dense(48), acts)


def test_it_is_what_the_cache_holds(session):
    x = normal(6, 6)
    with session.steering(EDITS):
        np.testing.assert_array_equal(session.encode(x), session.run_with_cache(x)[1][POST])


def test_values_for_each_token_and_what_does_not_fit(session):
    x, values = normal(2, 3, 6), normal(2, 3, seed=4)
    with session.steering({3: Clamp(values)}):
        np.testing.assert_array_equal(session.encode(x)[..., 3], values)
        assert session.top_features(x, 2).values.shape == (2, 3, 2)
        for call in (session.encode, lambda y: session.top_features(y, 2)):
            with pytest.raises(InputError, match=r"for tokens of shape \(2, 3\), the activations have \(6,\)"):
                call(normal(6, 6))


@pytest.mark.parametrize("k", [1, 2, 9, 48])
@pytest.mark.parametrize("lead", [(), (0,), (7,), (2, 3)])
def test_the_strongest_are_those_of_the_edited_activations(pair, k, lead):
    _, session = pair
    x = normal(*lead, 10)
    with session.steering(EDITS):
        acts, found = session.encode(x), session.top_features(x, k)
    assert found.indices.shape == found.values.shape == (*lead, k)
    assert (found.indices.dtype, found.values.dtype, found.l0.dtype) == (np.int64, np.float32, np.int64)
    np.testing.assert_array_equal(found.l0, (acts != 0).sum(axis=-1))
    np.testing.assert_array_equal(found.lossless, found.l0 <= k)
    np.testing.assert_array_equal(np.abs(found.values), -np.sort(-np.abs(acts), axis=-1)[..., :k])
    on = found.values != 0
    np.testing.assert_array_equal(np.take_along_axis(acts, found.indices, -1)[on], found.values[on])
    assert (found.indices[~on] == -1).all()


def test_an_intervention_that_changes_nothing_gives_what_the_graph_gives(pair):
    _, session = pair
    x = normal(40, 10)
    for k in (1, 9, 48):
        clean = session.top_features(x, k)
        with session.steering({3: Scale(1.0)}):
            steered = session.top_features(x, k)
        np.testing.assert_array_equal(steered.indices, clean.indices)
        np.testing.assert_array_equal(steered.values, clean.values)
        np.testing.assert_array_equal(steered.l0, clean.l0)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_order_is_that_of_the_portable_graph(data):
    """Ties are included: of two equally strong features, the one with the smaller id comes first."""
    tokens, d_sae = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 20))
    k = data.draw(st.integers(1, d_sae))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1e-40, np.inf, -np.inf])
    acts = np.array(data.draw(st.lists(values, min_size=tokens * d_sae, max_size=tokens * d_sae)), np.float32)
    acts = acts.reshape(tokens, d_sae)
    found = strongest_features(acts, k)
    order = np.argsort(-np.abs(acts), axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(acts, order, -1)
    np.testing.assert_array_equal(found.indices, np.where(values == 0, -1, order))
    np.testing.assert_array_equal(found.values, values)


def test_hook_functions_do_not_reach_the_features(session):
    """As in the original, `encode` does not call hook functions."""
    x = normal(4, 6)
    session.add_hook(lambda name: True, lambda tensor, hook: tensor * 2)
    with session.steering(EDITS), session.hooks([(POST, lambda tensor, hook: tensor * 2)]):
        acts = session.encode(x)
    session.reset_hooks()
    np.testing.assert_array_equal(acts, Intervention.of(EDITS)(session.encode(x)))


def test_a_reset_ends_the_steering(session):
    x = normal(4, 6)
    with session.steering(EDITS):
        session.reset_hooks()
        np.testing.assert_array_equal(session.encode(x), session.compute(x, [POST])[POST])


def test_on_a_device_they_stay_there(machine, expected):
    x = normal(4, 6)
    with expected.steering(EDITS):
        acts, wanted = expected.encode(x), expected.top_features(x, 5)
    with SAESession(TINY, "cuda") as sae, sae.steering(EDITS):
        array = DeviceArray(machine, x)
        on_card, found = sae.encode(array), sae.top_features(array, 5)
        assert all(isinstance(tensor, Tensor) and tensor.device == "cuda:0" for tensor in (on_card, *found))
        np.testing.assert_array_equal(np.asarray(on_card), acts)
        for tensor, array in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(tensor), array)
        np.testing.assert_array_equal(sae.encode(x), acts)


def test_steering_with_hook_functions_on_a_device(machine, expected):
    x = normal(4, 6)

    def outputs(sae, given):
        with sae.steering(EDITS), sae.steering({3: Scale(2.0)}), sae.hooks([(RECONS, lambda tensor, hook: None)]):
            return sae(given)

    with SAESession(TINY, "cuda") as sae:
        np.testing.assert_array_equal(np.asarray(outputs(sae, DeviceArray(machine, x))), outputs(expected, x))


def test_in_bfloat16(half):
    import ml_dtypes

    x = normal(4, 6).astype(ml_dtypes.bfloat16)
    with SAESession(half, "cpu") as sae:
        clean = sae.encode(x)
        with sae.steering(EDITS):
            acts, found = sae.encode(x), sae.top_features(x, 16)
            np.testing.assert_array_equal(acts, sae.run_with_cache(x)[1][POST])
        assert acts.dtype == found.values.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(acts[:, 3].astype(np.float32), 2.5)
        np.testing.assert_array_equal(acts[:, 2], clean[:, 2])
        np.testing.assert_array_equal(found.dense(16), acts)

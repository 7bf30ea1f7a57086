"""steer: edits of features in the graph have the effect of a forward hook on hook_sae_acts_post in PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Ablate, Add, Clamp, Edit, InputError, Intervention, SAESession, Scale
from runtime.parity.judge import judge
from runtime.parity.report import Report
from saeexport import export
from saeexport.original.running import torch_hook
from saeexport.proof.truth import reference_of, steered_reference_of
from tests.support.close import assert_hooks_close
from tests.support.samples import HOOKS, TINY, make_sae, normal

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
TINY_SESSION = SAESession(TINY, "cpu")
KINDS = [Ablate(), Clamp(2.5), Clamp(-1.0), Scale(3.0), Scale(-0.5), Add(0.5), Add(-0.25), Edit(2.0, 1.0), Edit()]


def judged(sae, session, x, edits):
    """Return the failures of a steered session, judged by the parity rule against the original with these edits."""
    intervention = edits if isinstance(edits, Intervention) else Intervention.of(edits)
    steered = steered_reference_of(sae, reference_of(sae, x), intervention)
    output, cache = session.steer(x, edits)
    outputs = {**cache, **({} if ERROR in cache else {ERROR: steered.original[ERROR]}), OUTPUT: output}
    return Report("", judge("steer", HOOKS, {hook: outputs[hook] for hook in HOOKS}, steered)).failures


@pytest.fixture(scope="module", params=[True, False], ids=["error_term", "no_error_term"])
def pair(request, tmp_path_factory):
    """An SAE with many more features than inputs, and a session of its artifact."""
    sae = make_sae(d_in=24, d_sae=96, use_error_term=request.param)
    path = export(sae, tmp_path_factory.mktemp("steered") / "sae", normal(40, 24)).path
    with SAESession(path, "cpu") as session:
        yield sae, session


# Parity


@pytest.mark.parametrize("edit", KINDS, ids=repr)
def test_a_single_edit(pair, edit):
    sae, session = pair
    x = normal(32, 24)
    for feature in (0, 17, 95):
        assert judged(sae, session, x, {feature: edit}) == []


def test_edits_of_every_kind_together(pair):
    sae, session = pair
    assert judged(sae, session, normal(32, 24), dict(zip(range(3, 96, 10), KINDS, strict=False))) == []


def test_edits_of_features_that_are_off(pair):
    sae, session = pair
    x = normal(1, 24)
    (off,) = np.nonzero(session.encode(x)[0] == 0)
    assert len(off) > 10
    assert judged(sae, session, x, dict(zip(off.tolist(), KINDS, strict=False))) == []
    _, cache = session.steer(x, {int(off[0]): Scale(100.0), int(off[1]): Clamp(4.0), int(off[2]): Add(-2.0)})
    assert cache[POST][0, off[:3]].tolist() == [0.0, 4.0, -2.0]


@pytest.mark.parametrize("edit", KINDS, ids=repr)
def test_all_features_at_once(pair, edit):
    sae, session = pair
    assert judged(sae, session, normal(32, 24), dict.fromkeys(range(96), edit)) == []


def test_ablating_everything_leaves_the_bias(pair):
    sae, session = pair
    x = normal(32, 24)
    _, cache = session.steer(x, dict.fromkeys(range(96), Ablate()))
    assert (cache[POST] == 0).all()
    np.testing.assert_allclose(cache[RECONS], np.tile(sae.b_dec.detach(), (32, 1)), atol=1e-5)


def test_no_edit_at_all_is_the_clean_pass_bit_for_bit(pair):
    _, session = pair
    x = normal(32, 24)
    output, cache = session.steer(x, {})
    expected, expected_cache = session.run_with_cache(x)
    np.testing.assert_array_equal(output, expected)
    for hook, y in expected_cache.items():
        np.testing.assert_array_equal(cache[hook], y)


def test_input_acts_pre_and_error_are_those_of_the_clean_pass_bit_for_bit(pair):
    _, session = pair
    x = normal(32, 24)
    _, cache = session.steer(x, dict(enumerate(KINDS)))
    _, clean = session.run_with_cache(x)
    for hook in {INPUT, PRE, ERROR} & set(clean):
        np.testing.assert_array_equal(cache[hook], clean[hook])


def test_values_for_each_token(pair):
    sae, session = pair
    x = normal(4, 8, 24)
    scale, shift = normal(4, 8, seed=2), normal(4, 8, seed=3)
    edits = {5: Edit(scale, 0.25), 50: Clamp(shift), 7: Ablate(), 8: Scale(scale[:, :1])}
    by_token = Intervention.of({5: Edit(scale.ravel(), 0.25), 50: Clamp(shift.ravel()), 7: Ablate(),
                                8: Scale(np.repeat(scale[:, 0], 8))})  # fmt: skip
    assert judged(sae, session, x.reshape(32, 24), by_token) == []
    output, cache = session.steer(x, edits)
    expected, expected_cache = session.steer(x.reshape(32, 24), by_token)
    np.testing.assert_array_equal(output.reshape(32, 24), expected)
    np.testing.assert_array_equal(cache[POST].reshape(32, 96), expected_cache[POST])
    np.testing.assert_array_equal(cache[POST][..., 50], shift)


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3), (2, 0)])
@pytest.mark.parametrize("token", [(12,), (3, 4)])
def test_heads_and_leading_dimensions(exported_z, lead, token):
    sae, path = exported_z
    edits = dict(zip(range(2, 12), KINDS, strict=False))
    x = normal(*lead, *token)
    with torch.no_grad(), sae.hooks(fwd_hooks=[(POST, torch_hook(Intervention.of(edits)))]):
        expected, expected_cache = sae.run_with_cache(torch.from_numpy(x))
    with SAESession(path, "cpu") as session:
        output, cache = session.steer(x, edits)
    assert list(cache) == list(expected_cache)
    assert_hooks_close({**cache, "the output": output}, {**expected_cache, "the output": expected})


NUMBERS = st.floats(-8, 8, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_edits(data):
    lead = data.draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    values = st.one_of(NUMBERS, st.integers(0, 9).map(lambda seed: normal(*lead, seed=seed)))
    edits = data.draw(st.dictionaries(st.integers(0, 15), st.builds(Edit, values, values), max_size=16))
    x = normal(*lead, 6)
    output, cache = TINY_SESSION.steer(x, edits)
    staged = Intervention.of(edits)
    with TINY_SESSION.hooks([(POST, lambda acts, hook: staged(acts))]):  # in stages, by numpy and decode.onnx
        expected, expected_cache = TINY_SESSION.run_with_cache(x)
    np.testing.assert_array_equal(cache[POST], expected_cache[POST])
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-4)


# Interventions in a session


def test_the_cache_can_be_filtered_and_the_output_left_out():
    x = normal(9, 6)
    edits = {3: Clamp(1.5), 4: Ablate()}
    output, cache = TINY_SESSION.steer(x, edits)
    for names in ([POST], [PRE, POST], [INPUT], [POST, RECONS], [OUTPUT]):
        none, some = TINY_SESSION.steer(x, edits, names, return_output=False)
        assert (none, list(some)) == (None, [hook for hook in HOOKS if hook in names])
        for name in names:
            np.testing.assert_array_equal(some[name], cache[name])
    np.testing.assert_array_equal(TINY_SESSION.steer(x, edits, POST)[0], output)


def test_the_features_alone_need_no_decoder(session):
    session.steer(normal(9, 6), {3: Clamp(1.5)}, POST, return_output=False)
    assert set(session._graphs.loaded) == {"acts"}
    session.steer(normal(9, 6), {3: Clamp(1.5)})
    assert set(session._graphs.loaded) == {"acts", "steer.sparse"}


def test_steering_holds_for_several_calls_and_ends():
    x, edits = normal(9, 6), {3: Clamp(1.5)}
    output, cache = TINY_SESSION.steer(x, edits)
    with TINY_SESSION.steering(edits) as session:
        assert session is TINY_SESSION
        np.testing.assert_array_equal(session(x), output)
        np.testing.assert_array_equal(session.run_with_cache(x[:3])[1][POST], cache[POST][:3])
        np.testing.assert_array_equal(session.encode(x), cache[POST])
        np.testing.assert_array_equal(session.compute(x, [POST])[POST], cache[POST])
    assert (TINY_SESSION(x) != output).any()


def test_it_composes_with_itself_and_with_hook_functions(exported):
    """Interventions apply in the order of nesting, like hook functions on one hook in the original."""
    sae, path = exported
    x = normal(9, 6)
    first, second = {3: Clamp(1.5), 4: Add(1.0)}, {3: Scale(2.0)}

    def cap(tensor, hook):
        return tensor.clip(0, 2)

    fwd_hooks = [(POST, torch_hook(Intervention.of(first))), (POST, cap),
                 (POST, torch_hook(Intervention.of(second))), (RECONS, cap)]  # fmt: skip
    with torch.no_grad(), sae.hooks(fwd_hooks=fwd_hooks):
        expected, expected_cache = sae.run_with_cache(torch.from_numpy(x))
    with (
        SAESession(path, "cpu") as session,
        session.steering(first),
        session.hooks([(POST, cap)]),
        session.steering(second),
        session.hooks([(RECONS, cap)]),
    ):
        output, cache = session.run_with_cache(x)
    assert cache[POST][:, 3].tolist() == [3.0] * 9
    np.testing.assert_allclose(output, expected, atol=1e-5)
    for name, y in expected_cache.items():
        np.testing.assert_allclose(cache[name], y, atol=1e-5, err_msg=name)


def test_an_intervention_as_a_hook_function_at_another_hook_edits_that_one():
    x, intervention = normal(9, 6), Intervention([3], 0.0, 7.0)
    with TINY_SESSION.hooks([(PRE, intervention)]):
        _, cache = TINY_SESSION.run_with_cache(x)
    assert (cache[PRE][:, 3] == 7).all()
    assert (cache[POST][:, 3] == 7).all()


def test_an_intervention_given_as_a_function_runs_in_stages(session):
    """The update would cancel: the edits remove a reconstruction a million times as large as the remainder."""
    x = 1e6 * normal(4, 6)
    everything = Intervention(np.arange(16), 0.0, 0.0)
    with session.hooks([(POST, everything)]):
        recons = session.run_with_cache(x)[1][RECONS]
    assert "steer" not in session._graphs.loaded
    np.testing.assert_array_equal(recons, session.decode(np.zeros((4, 16), np.float32)).reshape(4, 6))


def test_the_callers_arrays_are_left_alone():
    x, acts = normal(9, 6), normal(9, 16)
    kept = x.copy(), acts.copy()
    TINY_SESSION.steer(x, {3: Clamp(1.5)})
    Intervention.of({3: Clamp(1.5)})(acts)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(acts, kept[1])


# Errors


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({16: Ablate()}, "There is no feature 16; this SAE has 16, counted from 0."),
        ({-1: Ablate()}, "There is no feature -1; features are counted from 0."),
        ({1.0: Ablate()}, r"Feature ids are \[1.0\]; they must be a list of whole numbers."),
        ({True: Ablate()}, r"Feature ids are \[True\]"),
        ({"a": Ablate()}, r"Feature ids are \['a'\]"),
        ({3: 0.0}, r"The edit of feature 3 is 0.0; it must be Ablate\(\), Clamp\(v\)"),
        ({3: Scale(np.nan)}, "The scale of feature 3 is nan; it must be finite in float64"),
        ({2: Ablate(), 3: Add(np.inf)}, "The shift of feature 3 is inf; it must be finite"),
        ({3: Clamp(1e39)}, r"The shift of feature 3 is 1e\+39; it must be finite in float32"),
        ({3: Clamp("high")}, "The shift is 'high'; it must be numbers."),
        ({3: Clamp("3")}, "The shift is '3'; it must be numbers."),
        ({3: Scale(True)}, "The scale is True; it must be numbers."),
        ({3: Clamp(None)}, "The shift is None; it must be numbers."),
        ({3: Clamp(torch.ones(1, requires_grad=True))}, "The shift is tensor.*; it must be numbers."),
        ({2**63: Ablate()}, "There is no feature 9223372036854775808; features are counted from 0."),
        (None, "The edits are None; they must be a dict from feature ids to edits."),
        ([(0, Ablate())], r"The edits are \[\(0, Edit|The edits are \[\(0, Ablate"),
        ({3: Clamp([1.0, 2.0]), 4: Clamp([1.0, 2.0, 3.0])}, r"the shapes are 3: \(2,\), 4: \(3,\)"),
        ({3: Clamp([1.0, 2.0])}, r"The shift of the intervention is given for tokens of shape \(2,\), .* have \(9,\)"),
        ({3: Scale(np.ones((2, 9)))}, r"The scale .* tokens of shape \(2, 9\), the activations have \(9,\)"),
    ],
)
@pytest.mark.parametrize("names", [None, POST])
def test_invalid_edits_are_named(edits, message, names):
    with pytest.raises(InputError, match=message):
        TINY_SESSION.steer(normal(9, 6), edits, names, return_output=names is None)
    with pytest.raises(InputError, match=message), TINY_SESSION.steering(edits), TINY_SESSION.hooks():
        TINY_SESSION(normal(9, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([2**64 - 1], np.uint64), 0, 5), "There is no feature 18446744073709551615"),
        (([3, 5, 3], 0, 0), "Feature 3 is there 2 times; give it one edit."),
        (([[3]], 0, 0), "they must be a list of whole numbers"),
        (([3, 5], [1, 2, 3], 0), r"The scale has shape \(3,\); its last dimension must be 2, one per feature."),
        (([3, 5], 0, [[1], [2]]), r"The shift has shape \(2, 1\)"),
        (([3, 5], "a", 0), "The scale is 'a'; it must be numbers."),
        (([3, 5], 0, [0, np.nan]), "The shift of feature 5 is nan"),
    ],
)
def test_invalid_arrays_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Intervention(*arguments)


def test_arrays_and_a_dict_are_equivalent():
    x = normal(9, 6)
    output, _ = TINY_SESSION.steer(x, Intervention([3, 4], [0, 1], [2, 0.5]))
    np.testing.assert_array_equal(output, TINY_SESSION.steer(x, {3: Clamp(2.0), 4: Add(0.5)})[0])
    output, _ = TINY_SESSION.steer(x, Intervention([], [], []))
    np.testing.assert_array_equal(output, TINY_SESSION(x))


def test_edits_of_infinite_activations_do_not_warn(session):
    x = np.full((2, 6), np.inf, np.float32)
    with session.steering({3: Clamp(1.0)}):
        assert np.isnan(session.encode(x)[:, 3]).all()  # 0 * infinity, as in the graph

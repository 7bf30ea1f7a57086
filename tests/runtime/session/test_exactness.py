"""A few features, the strongest features and all features are the same numbers, on any input.

Small whole numbers show it bit for bit: every product and sum of them is exact in float32, in whatever order a kernel
adds. Many features then are exactly at their threshold, and many are equally strong. One input is in the encoder of
every feature, so that it turns them all on or off, and another is a thousand times as large as the rest, as the outlier
dimensions of language models are. With other numbers, the bound on the rounding of a product holds.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime import InputError, SAEError, SAESession
from runtime.session.features import TopFeatures, strongest_features
from saeexport import export
from saeexport.original.architectures import ARCHITECTURES
from tests.support.bounded import encode
from tests.support.fuzzing import fuzz
from tests.support.samples import HOOKS, make_sae, normal
from tests.support.zoo import D_IN, D_SAE, sae_of

_, PRE, POST, *_ = HOOKS
WATCHED = [name for name in ARCHITECTURES if "topk" not in name]
VOLUME, OUTLIER = 0, 1
"""The input that all features read alike, and the one that is large."""


def whole_sae(architecture):
    """Return an SAE whose parameters are small whole numbers."""
    sae, draws = sae_of(architecture), np.random.default_rng(8)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            low, high = {"threshold": (0, 4), "r_mag": (0, 1)}.get(name, (-3, 4))
            parameter.copy_(torch.from_numpy(draws.integers(low, high, parameter.shape)))
        sae.W_enc[VOLUME] = 1
    return sae


def whole_tokens(tokens, volumes, seed):
    """Return tokens of whole numbers; `volumes` turn their features on or off."""
    x = np.random.default_rng(seed).integers(-3, 4, (tokens, D_IN)).astype(np.float32)
    x[:, OUTLIER] *= 1000
    x[:, VOLUME] = np.resize(np.array(volumes, np.float32), tokens)
    return x


VOLUMES = st.lists(st.sampled_from([-20000, -12, -4, -1, 0, 1, 3, 15, 3000, 20000]), min_size=1, max_size=4)
SPOILED = st.dictionaries(st.integers(0, 30), st.sampled_from([np.nan, np.inf, -np.inf]), max_size=3)
IDS = st.lists(st.integers(0, D_SAE - 1), min_size=1, max_size=8)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def whole(request, tmp_path_factory):
    """An SAE of whole numbers in float64, and its session."""
    sae = whole_sae(request.param)
    known = np.concatenate([whole_tokens(60, [-4, 0, 3, 15], seed) for seed in (1, 2)])
    path = export(sae, tmp_path_factory.mktemp("whole") / request.param, known).path
    with SAESession(path, "cpu") as session:
        yield sae.double(), session


def same_bits(found, wanted):
    """Fail unless two arrays are the same, bit for bit, apart from the bits of a NaN."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(found[number].view(np.uint32), wanted[number].view(np.uint32))


def check_any_input(sae, session, shrink=True):
    """Fail unless the calls of a session agree, and agree with the original in float64, whatever the input."""

    @fuzz(60, shrink)
    @given(tokens=st.integers(0, 20), volumes=VOLUMES, seed=st.integers(0, 99), spoiled=SPOILED, ids=IDS,
           k=st.integers(1, D_SAE))  # fmt: skip
    def check(tokens, volumes, seed, spoiled, ids, k):
        x = whole_tokens(tokens, volumes, seed)
        for row, value in spoiled.items():
            if row < tokens:
                x[row, 2] = value
        with np.errstate(invalid="ignore"):
            acts = session.encode(x)
        for own, other in zip(session.top_features(x, k), strongest_features(acts, k), strict=True):
            np.testing.assert_array_equal(own, other)
        if sae.architecture not in WATCHED:
            with pytest.raises(InputError, match=f"of this {sae.architecture} SAE cannot be computed one without"):
                session.watch(ids)
            return
        for found in (session.compute_features(x, ids), session.watch(ids)(x)):
            same_bits(found, acts[:, ids])
        finite = np.isfinite(x).all(axis=1)
        with torch.no_grad():
            truth = sae.encode(torch.from_numpy(x[finite]).double()).numpy()
        np.testing.assert_array_equal(acts[finite], truth)

    check()


def test_every_call_has_the_same_bits_on_any_input(whole):
    check_any_input(*whole)


def test_the_inputs_reach_every_sparsity_and_the_thresholds(whole):
    sae, session = whole
    if sae.architecture not in WATCHED:
        pytest.skip("top-k has an L0 of its own")
    l0 = {volume: (session.encode(whole_tokens(20, [volume], 1)) != 0).sum(axis=1) for volume in (-20000, 0, 20000)}
    assert (l0[-20000] == 0).all()
    assert (l0[20000] == D_SAE).all()
    assert (l0[0].mean() > 0) & (l0[0].mean() < D_SAE)
    x = torch.from_numpy(whole_tokens(20, [0, 3], 1)).double()
    with torch.no_grad():
        acts_pre = sae.preactivations(x)
        gate = acts_pre - getattr(sae, "threshold", 0) if sae.architecture != "gated" else sae._product(x) + sae.b_gate
    assert (gate == 0).any()


class Mistaken:
    """A session that makes a mistake in one of its calls."""

    def __init__(self, session, call, mistake):
        self._session, self._call, self._mistake = session, call, mistake

    def __getattr__(self, name):
        method = getattr(self._session, name)
        if name != self._call:
            return method
        if name == "watch":
            return lambda ids: lambda x: self._mistake(self._session, x, ids, method(ids)(x))
        return lambda x, *more: self._mistake(self._session, x, *more, method(x, *more))


def changed(find, value):
    """Return a mistake: features that `find` finds have the activation that `value` gives them."""

    def mistake(session, x, *more):
        ids, acts = more if len(more) == 2 else (slice(None), more[0])
        acts = acts.copy()
        acts_pre = session.compute(x, [PRE])[PRE][:, ids]
        where = find(session, acts, acts_pre, x)
        acts[where] = value(acts, acts_pre)[where]
        return acts

    return mistake


def others(session, x, ids, acts):
    return session.encode(x)[:, [(j + 1) % D_SAE for j in ids]]


def strongest(change):
    """Return a mistake in the strongest features."""

    def mistake(session, x, k, found):
        return TopFeatures(*change(*(np.array(array) for array in found)))

    return mistake


def ties_backwards(indices, values, l0):
    """Sort features that are equally strong by descending id."""
    order = np.lexsort((-indices, -np.abs(values)), axis=-1)
    return np.take_along_axis(indices, order, -1), values, l0


MISTAKES = {
    "watch: other features": ("watch", others),
    "watch: one unit in the last place": (
        "watch", changed(lambda s, acts, *_: acts > 1e4, lambda acts, _: np.nextafter(acts, np.float32(np.inf)))),
    "watch: NaN is off": ("watch", changed(lambda s, acts, *_: np.isnan(acts), lambda acts, _: np.zeros_like(acts))),
    "watch: infinity is a large number": (
        "watch", changed(lambda s, acts, *_: np.isinf(acts), lambda acts, _: np.full_like(acts, 3e38))),
    "watch: minus zero": ("watch", changed(lambda s, acts, *_: acts == 0, lambda acts, _: -acts)),
    "watch: off if all are on": (
        "watch", changed(lambda s, acts, pre, x: np.repeat(x[:, :1] >= 20000, acts.shape[1], 1),
                         lambda acts, _: np.zeros_like(acts))),
    "compute_features: at the threshold is on": (
        "compute_features", changed(lambda s, acts, pre, _: (acts == 0) & (pre > 0) & (pre <= 3), lambda _, pre: pre)),
    "encode: at the threshold is on": (
        "encode", changed(lambda s, acts, pre, _: (acts == 0) & (pre > 0) & (pre <= 3), lambda _, pre: pre)),
    "top_features: ties backwards": ("top_features", strongest(ties_backwards)),
    "top_features: l0 of a token with NaN": (
        "top_features", strongest(lambda indices, values, l0: (indices, values, np.maximum(l0, 0)))),
    "top_features: an index where none is on": (
        "top_features", strongest(lambda indices, values, l0: (np.maximum(indices, 0), values, l0))),
}  # fmt: skip


@pytest.fixture(scope="module")
def jumping(tmp_path_factory):
    sae = whole_sae("jumprelu")
    path = export(sae, tmp_path_factory.mktemp("jumping") / "sae", whole_tokens(120, [-4, 0, 3, 15], 1)).path
    with SAESession(path, "cpu") as session:
        yield sae.double(), session


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(jumping, name):
    sae, session = jumping
    with pytest.raises(AssertionError):
        check_any_input(sae, Mistaken(session, *MISTAKES[name]), shrink=False)


# Other numbers


@pytest.fixture(scope="module", params=[(6, 16), (64, 200)], ids=str)
def standard(request, tmp_path_factory):
    sae = make_sae(*request.param)
    path = export(sae, tmp_path_factory.mktemp("standard") / "sae", normal(60, request.param[0])).path
    weights = {name: tensor.detach().double().numpy() for name, tensor in sae.named_parameters()}
    with SAESession(path, "cpu") as session:
        yield weights, session


def check_any_numbers(weights, session, change=lambda acts: acts, shrink=True):
    """Fail unless watched features are within the bound on the rounding of a product."""
    d_in, d_sae = weights["W_enc"].shape

    @fuzz(60, shrink)
    @given(data=st.data(), tokens=st.integers(0, 40), scale=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 40.0, 1e6]),
           outlier=st.sampled_from([1, 1000, 1e5]), seed=st.integers(0, 99))  # fmt: skip
    def check(data, tokens, scale, outlier, seed):
        ids = data.draw(st.lists(st.integers(0, d_sae - 1), min_size=1, max_size=80))
        x = normal(tokens, d_in, seed=seed) * np.float32(scale)
        x[:, 3] *= np.float32(outlier)
        _, acts = encode(weights, x.astype(np.float64))
        for name, found in (("encode", session.encode(x)[:, ids]), ("watch", change(session.compute_features(x, ids)))):
            wrong = ~(np.abs(found.astype(np.float64) - acts.value[:, ids]) <= acts.error[:, ids])
            assert not wrong.any(), name

    check()


def test_other_numbers_are_within_the_bound_of_a_product(standard):
    check_any_numbers(*standard)


@pytest.mark.parametrize("change", [
    lambda acts: acts * np.float32(1 + 1e-3), lambda acts: np.where(acts < 0.1, 0, acts), lambda acts: acts[:, ::-1],
], ids=["scaled", "small ones are off", "another order"])  # fmt: skip
def test_other_numbers_outside_the_bound_are_found(standard, change):
    with pytest.raises(AssertionError):
        check_any_numbers(*standard, change, shrink=False)


# Where a call does not go to ONNX Runtime directly


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4", "list", "column-major", "heads"])
def test_what_has_to_be_converted_or_refused_is(standard, kind):
    weights, session = standard
    x, acts = normal(5, weights["W_enc"].shape[0]), session.watch([3, 1])
    if kind in (np.float64, ">f4", "heads"):
        with pytest.raises(InputError):
            acts(x.reshape(5, 2, -1) if kind == "heads" else x.astype(kind))
        return
    given = {"list": x.tolist, "column-major": lambda: np.asfortranarray(x)}.get(kind, lambda: x.astype(kind))()
    if kind == "list":
        with pytest.raises(InputError):  # of float64
            acts(given)
        return
    np.testing.assert_array_equal(acts(given), acts(np.ascontiguousarray(given, np.float32)))


def test_more_tokens_than_one_call_computes(standard, monkeypatch):
    weights, session = standard
    x, acts = normal(9, weights["W_enc"].shape[0]), session.watch([3, 1])
    at_once = acts(x)
    monkeypatch.setattr(acts._selection, "at_once", 8)
    monkeypatch.setattr(session._graphs, "run_at_once", None)
    np.testing.assert_array_equal(acts(x), at_once)
    with pytest.raises(TypeError):
        acts(x[:8])


def test_an_error_of_onnx_runtime_says_what_could_not_be_done(standard, monkeypatch):
    weights, session = standard
    acts, words = session.watch([3, 1]), RuntimeError("its words")

    class Failing:
        def run(self, *_):
            raise words

    monkeypatch.setattr(acts._selection, "session", Failing())
    monkeypatch.setattr("runtime.session.loading.is_from_onnx_runtime", lambda error: True)
    with pytest.raises(
        SAEError, match=r"ONNX Runtime cannot run '.*of 2 features' on cpu with .*: its words"
    ) as caught:
        acts(normal(weights["W_enc"].shape[0]))
    assert caught.value.__cause__ is words
    monkeypatch.setattr("runtime.session.loading.is_from_onnx_runtime", lambda error: False)
    with pytest.raises(RuntimeError) as caught:
        acts(normal(weights["W_enc"].shape[0]))
    assert caught.value is words

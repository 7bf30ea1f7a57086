"""Which tokens prove little, worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from runtime import ParityError
from saeexport import HookedSAE
from saeexport.proof import truth
from saeexport.proof.decisions import follow_decisions
from saeexport.proof.truth import _cancelled, _implausible, _without
from tests.support.references import ERROR, INPUT, OUTPUT, POST, PRE, RECONS, make_reference
from tests.support.samples import HOOKS, normal


def with_errors(errors, hook=PRE, dtype="bfloat16"):
    """Return a reference whose original has these errors, one for each token; every size is 1."""
    reference = make_reference([[1.0, -1.0]] * len(errors), x=np.zeros((len(errors), 2)), budget=None, dtype=dtype)
    y = reference.truth[hook] + np.float32(errors)[:, None]
    return dataclasses.replace(reference, original={**reference.original, hook: y.astype(np.float32)})


@pytest.mark.parametrize("hook", [PRE, RECONS])
@pytest.mark.parametrize(("typical", "limit"), [(0.001, 8 * (0.001 + 2**-8)), (0.01, 2**-4)])
def test_a_token_far_less_exact_than_the_median_is_left_out(hook, typical, limit):
    """The limit is eight times the median error plus a rounding, and at most 2^-4 in bfloat16."""
    for error, far in ((0.99 * limit, False), (1.01 * limit, True), (-1.01 * limit, True)):
        reference = with_errors([typical] * 6 + [0.0] * 20 + [error], hook)
        assert _implausible(reference, [hook]).tolist() == [False] * 26 + [far]
        assert not _implausible(reference, [POST]).any()
        assert _implausible(reference, [POST, hook]).tolist() == [False] * 26 + [far]


@pytest.mark.parametrize(("hook", "roundings"), [(PRE, 1), (RECONS, 1), (ERROR, 2), (OUTPUT, 2)])
def test_the_limit_has_a_rounding_for_each_rounding_of_the_result(hook, roundings):
    limit = 8 * (2**-20 + roundings * 2**-24)
    for error, far in ((0.97 * limit, False), (1.03 * limit, True)):
        assert _implausible(with_errors([2**-20] * 9 + [error], hook, "float32"), [hook])[-1] == far


def test_where_all_tokens_are_alike_none_is_left_out():
    for error in (0.0, 0.03):
        assert not _implausible(with_errors([error] * 4), [PRE]).any()


def test_an_original_that_is_inexact_on_most_tokens_is_refused():
    assert _implausible(with_errors([0.1] * 5 + [0.001] * 5), [PRE]).tolist() == [True] * 5 + [False] * 5
    reference = with_errors([0.1] * 6 + [0.001] * 4)
    message = r"hook_sae_acts_pre: .* is 1.0e-01 in the median; on most tokens it is more than the 6e-02 that rounding"
    with pytest.raises(ParityError, match=message):
        _implausible(reference, [POST, PRE, RECONS])
    half = with_errors([0.1] * 3 + [0.001] * 7)
    y = half.truth[RECONS] + np.float32([0.0] * 3 + [0.5] * 3 + [0.0] * 4)[:, None]
    both = dataclasses.replace(half, original={**half.original, RECONS: y.astype(np.float32)})
    with pytest.raises(ParityError, match="on most tokens"):  # each hook on three of ten tokens, and not on the same
        _implausible(both, [PRE, RECONS])


def test_an_error_at_its_bound_is_not_too_large():
    assert not _implausible(with_errors([2**-4] * 6 + [0.0] * 4), [PRE]).any()


def test_the_hook_that_is_named_is_the_least_exact_one_in_the_median():
    errors = with_errors([0.1] * 6 + [0.0] * 4)
    y = errors.truth[RECONS] + np.float32([0.08] * 9 + [0.9])[:, None]
    both = dataclasses.replace(errors, original={**errors.original, RECONS: y.astype(np.float32)})
    with pytest.raises(ParityError, match=r"^hook_sae_acts_pre: .* is 1.0e-01 in the median"):
        _implausible(both, [PRE, RECONS])


@pytest.mark.parametrize(("size", "x", "cancelled"), [
    (1 / 8, 2.0, False), (1 / 16, 0.5, False), (1 / 16, 1.0, True), (1.0, 16.0, False),
])  # fmt: skip
def test_both_the_preactivations_and_their_ratio_to_the_input_are_more_than_eight_times_smaller(size, x, cancelled):
    """Where one of them is exactly eight times smaller, or as usual, the token stays."""
    reference = make_reference([[1.0]] * 9 + [[size]], x=[[1.0, 0.0]] * 9 + [[x, 0.0]])
    assert _cancelled(reference).tolist() == [False] * 9 + [cancelled]


def test_the_norm_of_an_input_in_float16_does_not_overflow():
    reference = make_reference([[1.0]] * 9 + [[1 / 16]], x=[[1000.0, 0.0]] * 10)
    half = dataclasses.replace(reference, original={**reference.original, INPUT: np.float16([[1000, 0]] * 10)})
    assert _cancelled(half).tolist() == [False] * 9 + [True]


class Coarse(HookedSAE):
    """On tokens with a large first element, the preactivations are sums of large values, or all of them small."""

    by_adding, by_scaling = 0.0, 1.0

    def preactivations(self, x):
        chosen = x[:, :1] > 9
        large = self.by_adding * chosen
        return (super().preactivations(x) + large - large) * torch.where(chosen, self.by_scaling, 1.0)


@pytest.mark.parametrize(("by_adding", "by_scaling"), [(1e3, 1.0), (0.0, 2.0**-6)], ids=["inexact", "cancelled"])
def test_a_token_is_left_out_before_decisions_are_compared(monkeypatch, by_adding, by_scaling):
    """Else it would widen the tolerance that says which decisions matter."""
    sae, x, compared = Coarse(dict(d_in=6, d_sae=16, hook_name="h", seed=0, device="cpu")), normal(40, 6), []
    sae.by_adding, sae.by_scaling = by_adding, by_scaling
    with torch.no_grad():
        sae.W_enc[0] /= 10
    x[7, 0] = 10.0

    def follow(sae, reference):
        compared.append(reference.tokens)
        return follow_decisions(sae, reference)

    monkeypatch.setattr(truth, "follow_decisions", follow)
    reference = truth.reference_of(sae, x)
    assert list(reference.truth) == HOOKS[1:]
    assert compared == [39]
    assert reference.left_out == 1


def test_a_token_whose_preactivations_cancel_is_left_out_unless_its_input_is_small():
    for size, x, cancelled in ((1 / 8.1, 1.0, True), (1 / 7.9, 1.0, False), (1 / 8.1, 0.1, False), (0.0, 0.0, True)):
        pre = [[1.0, -1.0]] * 9 + [[size, -size]]
        reference = make_reference(pre, x=[[1.0, 1.0]] * 9 + [[x, x]])
        assert _cancelled(reference).tolist() == [False] * 9 + [cancelled]


def test_tokens_that_are_left_out_are_counted():
    reference = make_reference([[1.0], [2.0], [3.0], [4.0]])
    assert _without(reference, np.zeros(4, bool)) is reference
    once = _without(reference, np.array([False, True, False, True]))
    assert (once.truth[PRE].tolist(), once.left_out) == ([[1], [3]], 2)
    assert _without(once, np.array([True, False])).left_out == 3

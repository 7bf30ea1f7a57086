"""Which tokens prove little, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from runtime import ParityError
from saeexport.proof.truth import _cancelled, _implausible, _without
from tests.support.references import ERROR, OUTPUT, POST, PRE, RECONS, make_reference


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

"""The numbers of the parity rule, each worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from runtime import ParityError
from runtime.artifact import budgets
from runtime.artifact.manifest import Errors
from runtime.parity.judge import judge
from runtime.parity.reference import COMPUTED_HOOKS, derive_outputs
from tests.support.references import ERROR, INPUT, OUTPUT, POST, PRE, RECONS, make_reference, make_steered

TWO = [[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]


def test_the_constants_are_those_of_the_page():
    """`docs/parity.md` states them, and readers of format 1 compute budgets with them."""
    assert budgets.FACTOR == 4
    assert budgets.FLOOR == {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
    assert budgets.MOST_OWN_ERROR == {"float32": 1e-3, "float16": 2**-7, "bfloat16": 2**-4}
    assert (budgets.MIN_COLUMN_TOKENS, budgets.PROVES_NOTHING, budgets.MARGIN, budgets.MOST_LOST) == (32, 1, 2, 0.05)


def test_every_hook_but_the_input_is_computed():
    assert COMPUTED_HOOKS == (PRE, POST, RECONS, ERROR, OUTPUT)


def test_a_fidelity_budget_is_twice_the_sum_of_both_errors():
    budget = budgets.fidelity_budget(Errors(0.25, 0.5), Errors(1.0, 3.0))
    assert budget == Errors(2.5, 7.0)


# The reference and its tokens


def test_a_subset_has_all_that_belongs_to_its_tokens():
    reference = make_reference(
        TWO, target=np.float32([[1, 2], [3, 4]]), uncertain=np.array([[True, False, False], [False, True, True]]),
        flips=np.array([1, 5]),
    )  # fmt: skip
    for tokens in (np.array([False, True]), np.array([1])):
        part = reference.subset(tokens)
        assert part.tokens == 1
        assert part.target.tolist() == [[3, 4]]
        assert part.uncertain.tolist() == [[False, True, True]]
        assert part.flips.tolist() == [5]
        for hook, y in part.original.items():
            assert (y == reference.original[hook][1:]).all()
        for hook, y in part.truth.items():
            assert (y == reference.truth[hook][1:]).all()


def test_a_subset_under_an_intervention_has_the_edits_of_its_tokens():
    clean = make_reference(TWO)
    for scale, shift, expected in (
        ([[1, 2], [3, 4]], [[0, 0], [5, 6]], ([[3, 4]], [[5, 6]])),
        ([[1, 2]], [[0, 5]], ([[1, 2]], [[0, 5]])),
        ([1, 2], [0, 5], ([1, 2], [0, 5])),
    ):
        part = make_steered(clean, [0, 2], scale, shift).subset(np.array([1]))
        assert (part.intervention.scale.tolist(), part.intervention.shift.tolist()) == expected
        assert part.clean.tokens == part.tokens == 1
        assert (part.clean.truth[PRE] == clean.truth[PRE][1:]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_infinite_value_is_named_with_advice(dtype):
    with pytest.raises(ParityError, match=r"hook_sae_acts_pre is inf at \[0, 1\]: .*finite values only\.") as error:
        make_reference([[1.0, np.inf]], acts_post=[[1.0, 0.0]], dtype=dtype)
    assert ("float16 ends at 65504" in str(error.value)) == (dtype == "float16")
    assert ("a token of zeros" in str(error.value)) == (dtype == "float32")


# Size, error and budget


def test_the_size_of_preactivations_counts_an_outlier_as_32_medians():
    reference = make_reference(
        [[1000.0, 1.0, -1.0, 1.0], [-3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [200.0, -200.0, 200.0, 200.0]]
    )
    typical = [math.sqrt((32**2 + 3) / 4), 3 / 2, 0, 200]
    for hook in (PRE, POST):
        assert reference.token_scale(hook) == pytest.approx(typical)
        assert reference.scale(hook)[0] == pytest.approx([1000 / 32, *typical[:1] * 3])
        assert reference.scale(hook)[1] == pytest.approx(typical[1:2] * 4)


def test_the_size_of_a_reconstruction_is_that_of_input_and_reconstruction():
    reference = make_reference([[2.0, 1.0, -9.0]], x=[[3.0, 4.0]])  # the reconstruction is [3, 3]
    for hook in (RECONS, ERROR, OUTPUT):
        assert reference.scale(hook).tolist() == [[pytest.approx(math.sqrt(25 / 2) + 3)]]
        assert reference.token_scale(hook) == pytest.approx([math.sqrt(25 / 2) + 3])


def test_the_size_of_an_input_whose_square_is_beyond_float32():
    reference = make_reference([[1.0]], x=[[3e30, 4e30]])
    assert reference.scale(OUTPUT).tolist() == [[pytest.approx(5e30 / math.sqrt(2))]]


def test_the_size_of_a_transcoder_is_that_of_its_target():
    reference = make_reference([[2.0, 1.0]], x=[[30.0, 40.0]], target=np.float32([[6.0, 8.0]]))
    assert reference.error_target.tolist() == [[6, 8]]
    assert reference.scale(ERROR).tolist() == [[pytest.approx(math.sqrt(50) + 3)]]
    assert reference.replace_recons(np.array([True]), np.array([[1.0, 2.0]]))[ERROR].tolist() == [[5, 6]]


def test_under_an_intervention_the_clean_reconstruction_counts_too():
    clean = make_reference([[2.0, 1.0]])
    steered = make_steered(clean, [0], [0.0], [0.0])
    assert clean.scale(RECONS)[0, 0] == pytest.approx(1 + 3)
    assert steered.scale(RECONS)[0, 0] == pytest.approx(1 + 1 + 3)
    assert steered.scale(POST).tolist() == clean.scale(POST).tolist()


def test_errors_below_and_above_the_truth_count_alike():
    reference = make_reference([[1.0, -1.0, 1.0, -1.0]])
    for sign in (1, -1):
        y = reference.original[PRE] + np.float32([[0, sign * 0.5, 0, 0]])
        assert reference.errors(PRE, y) == Errors(token=0.25, element=0.5)
        assert reference.worst(PRE, y) == (0, 1)


@pytest.mark.parametrize(("budget", "passes"), [(0.5, True), (np.nextafter(0.5, 0), False)])
def test_an_error_may_be_as_large_as_its_budget(budget, passes):
    reference = make_reference([[1.0, -1.0]], budget=budget)
    y = reference.original[PRE] + np.float32(0.5)
    assert (judge("encode", [PRE], {PRE: y}, reference)[0].failures == ()) == passes


def test_the_budget_has_a_rounding_for_each_rounding_of_the_result():
    roundings = {PRE: 1, POST: 1, RECONS: 1, ERROR: 2, OUTPUT: 2}
    edited = {**roundings, RECONS: 2, OUTPUT: 3}
    for dtype, unit in (("float32", 2**-24), ("float16", 2**-11), ("bfloat16", 2**-8)):
        clean = make_reference(TWO, budget=None, dtype=dtype)
        for reference, expected in ((clean, roundings), (make_steered(clean, [0], [2.0], [0.0]), edited)):
            for hook, n in expected.items():
                assert reference.floor(hook) == n * unit
                assert reference.budgets[hook] == Errors(n * unit, n * unit)  # the original has no error


def test_a_budget_is_four_times_the_error_of_the_original():
    right = make_reference([[1.0, -1.0]], budget=None)
    original = {**right.original, PRE: np.float32([[1.5, -1.0]])}
    reference = dataclasses.replace(right, original=original)
    assert reference.budgets[PRE] == Errors(4 * 0.5 / math.sqrt(2) + 2**-24, 4 * 0.5 + 2**-24)
    assert reference.acts_pre_tolerance.tolist() == [[2 + 2**-24] * 2]


def test_the_budget_stays_when_the_truth_follows_a_graph():
    reference = make_reference(TWO, budget=None)
    followed = reference.with_truth({PRE: reference.truth[PRE] + 1})
    assert followed.budgets == reference.budgets
    assert followed.errors(PRE, reference.original[PRE]).element > followed.budgets[PRE].element


def test_a_token_of_zeros_has_an_error_only_where_it_is_wrong():
    """It has no size to divide by, and no warning is raised."""
    reference = make_reference([[0.0, 0.0], [1.0, 1.0]])
    y = reference.original[PRE].copy()
    assert reference.errors(PRE, y) == Errors(0.0, 0.0)
    y[0, 0] = 1e-30
    assert reference.errors(PRE, y) == Errors(np.inf, np.inf)
    assert judge("encode", [PRE], {PRE: y}, reference)[0].failures


@pytest.mark.parametrize("error_term", [True, False, None])
def test_the_hooks_after_the_activations(error_term):
    recons, error = np.array([[1.0]]), None if error_term is None else np.array([[4.0]])
    found = {hook: y.tolist() for hook, y in derive_outputs(recons, error, bool(error_term)).items()}
    assert found == {RECONS: [[1]], OUTPUT: [[5 if error_term else 1]], **({} if error is None else {ERROR: [[4]]})}


@pytest.mark.parametrize("error_term", [True, False])
def test_another_reconstruction_of_some_tokens(error_term):
    reference = make_reference(TWO, use_error_term=error_term)  # the reconstructions are 4 and 4.5, the inputs 1
    before = {hook: y.copy() for hook, y in reference.truth.items()}
    replaced = reference.replace_recons(np.array([False, True]), np.array([[7.0, 8.0]]))
    assert replaced[RECONS].tolist() == [[4, 4], [7, 8]]
    assert replaced[ERROR].tolist() == [[-3, -3], [-6, -7]]
    assert replaced[OUTPUT].tolist() == ([[1, 1], [1, 1]] if error_term else [[4, 4], [7, 8]])
    for hook, y in before.items():
        assert (reference.truth[hook] == y).all()


def test_a_transcoder_without_the_error_term_has_no_error():
    reference = make_reference(TWO)
    truth = {hook: y for hook, y in reference.truth.items() if hook != ERROR}
    without = dataclasses.replace(reference, truth=truth, use_error_term=False)
    assert list(without.replace_recons(np.array([True, False]), np.ones((1, 2)))) == [RECONS, OUTPUT]


# Decisions


def test_flips_of_uncertain_features_are_counted():
    uncertain = np.array([[True, True, False, True]])
    reference = make_reference(
        [[1.0, 1.0, 1.0, 1.0]], acts_post=[[1, 0, 1, 0]], true_post=[[0, 1, 0, 0]], uncertain=uncertain
    )
    assert reference.n_flipped == 2
    assert reference.max_flipped == math.inf
    assert dataclasses.replace(reference, flips=np.array([3])).max_flipped == 4 * 3 + 8
    assert dataclasses.replace(reference, uncertain=None).n_flipped == 0


@pytest.mark.parametrize(("flips", "passes"), [(8, True), (9, False)])
def test_more_flips_than_rounding_explains_fail(flips, passes):
    reference = make_reference(
        np.ones((1, 12)), acts_post=np.zeros((1, 12)), true_post=[[1.0] * flips + [0.0] * (12 - flips)],
        uncertain=np.ones((1, 12), bool), flips=np.array([0]),
    )  # fmt: skip
    (verdict,) = judge("encode", [POST], {POST: reference.truth[POST].astype(np.float32)}, reference)
    message = (f"encode: {POST}: 9 gates near their threshold decide differently from the original; rounding explains "
               "at most 8.",)  # fmt: skip
    assert verdict.failures == (() if passes else message)
    assert verdict.note == f"({flips} decisions differing from the original)"


def test_an_edited_feature_may_be_on_or_off_if_its_activation_is_computed():
    clean = make_reference(np.ones((2, 7)))
    #         clamp, ablate, scale, add, scale and add, nothing
    scale, shift = [0, 0, 0.5, 1, 2, 1], [3, 0, 0, -1, 1, 0]
    free = [False, False, True, True, True, False, False]
    for edits in ((scale, shift), ([scale], [shift]), ([scale] * 2, [shift] * 2)):
        assert make_steered(clean, [0, 1, 2, 3, 4, 5], *edits).support_is_free.tolist() == [free] * 2
    assert not clean.support_is_free.any()
    steered = make_steered(clean, [2, 4], [[0.5, 0], [0, 0.5]], [[0, 1], [1, 0]])
    assert np.argwhere(steered.support_is_free).tolist() == [[0, 2], [1, 4]]


def test_the_support_of_a_feature_that_is_free_is_not_judged():
    steered = make_steered(make_reference([[1.0, 5.0, 1.0]], budget=9.0), [0], [0.5], [0.0])
    for feature in (0, 2):
        y = steered.original[POST].copy()
        y[0, feature] = 0
        (verdict,) = judge("steer", [POST], {POST: y}, steered)
        assert ([f"feature {feature} of token 0 is off (0)" in failure for failure in verdict.failures] == [True]) == (
            feature == 2
        )


# Columns


def columns_of(**more):
    """Return a reference in float16 whose original has an error of 2^-9 in feature 1 of 8 of 32 tokens."""
    reference = make_reference([[1.0, -1.0]] * 32, dtype="float16", **more)
    original = reference.original[PRE].copy()
    original[::4, 1] += 2**-9
    return dataclasses.replace(reference, original={**reference.original, PRE: original})


def test_the_budget_of_a_column_is_four_times_the_errors_of_the_original_or_one_rounding():
    reference = columns_of()
    assert reference.column_errors(PRE, reference.original[PRE]) == pytest.approx([0, 2**-9 / 2])
    assert reference.column_budgets(PRE) == pytest.approx([2**-11, 4 * 2**-9 / 2])
    truth = {**reference.truth, PRE: reference.truth[PRE] * [1, 3]}  # the size of a token is the root of 5
    original = {**reference.original, PRE: truth[PRE].astype(np.float32)}
    exact = dataclasses.replace(reference, truth=truth, original=original)
    y = reference.truth[PRE] + [2**-11, 0]
    assert judge("encode", [PRE], {PRE: y.astype(np.float32)}, reference, [PRE])[0].failures == ()
    assert exact.column_budgets(PRE) == pytest.approx(np.array([1, 3]) / math.sqrt(5) * 2**-11)


def test_what_is_not_a_number_has_no_error_of_zero():
    """A caller that compares errors with a budget must not take it for the truth."""
    reference = make_reference([[1.0, -2.0], [0.0, 0.0]])
    for token in (0, 1):  # the scale of the second one is 0
        y = reference.truth[PRE].copy()
        y[token, 1] = np.nan
        assert math.isnan(reference.element_errors(PRE, y)[token, 1])
        assert not reference.errors(PRE, y).element <= reference.budget(PRE).element
        assert not reference.errors(PRE, y).token <= reference.budget(PRE).token


def test_a_token_of_zeros_does_not_widen_the_budget_of_a_column():
    reference = make_reference([[1.0, -1.0]] * 32 + [[0.0, 0.0]] * 32, dtype="float16")
    assert reference.column_budgets(PRE) == pytest.approx([2**-11 / math.sqrt(2)] * 2)


def test_columns_are_judged_in_half_precision_from_32_tokens_on():
    reference = columns_of()
    assert reference.judges_columns
    assert not reference.subset(np.arange(31)).judges_columns
    assert not dataclasses.replace(reference, rounded=True).judges_columns
    assert not dataclasses.replace(reference, dtype="float32").judges_columns
    assert dataclasses.replace(reference, dtype="bfloat16").judges_columns


@pytest.mark.parametrize(("hook", "what"), [(PRE, "feature"), (RECONS, "dimension")])
def test_the_worst_column_is_named(hook, what):
    """It is the one that exceeds its own budget most, not the one with the largest error."""
    reference = columns_of(budget=9.0)
    original = reference.original[hook].copy()
    original[:, 1] += 1.0  # column 1 has a budget of four times this, and column 0 of about a rounding
    reference = dataclasses.replace(reference, original={**reference.original, hook: original})
    y = reference.truth[hook].astype(np.float32)
    y[:, 0] += 0.125
    y[:, 1] += 5.0
    (verdict,) = judge("decode", [hook], {hook: y}, reference, [hook])
    errors, allowed = reference.column_errors(hook, y), reference.column_budgets(hook)
    assert errors[1] > errors[0]
    assert verdict.failures == (
        f"decode: {hook}: over all tokens, the error of {what} 0 is {errors[0]:.3e}, its budget {allowed[0]:.3e} "
        "(and 1 more like it).",
    )
    assert judge("decode", [hook], {hook: y}, reference)[0].failures == ()
    assert judge("decode", [hook], {hook: y}, dataclasses.replace(reference, dtype="float32"), [hook])[0].failures == ()


# Messages and exact outputs


def test_without_any_output_the_message_says_none():
    reference = make_reference(TWO)
    assert judge("encode", [PRE], {}, reference)[0].failures == (
        f"encode: {PRE}: the output is missing; there are none.",
    )
    assert "there are a, b." in judge("encode", [PRE], {"a": 1, "b": 2}, reference)[0].failures[0]


def test_an_input_that_is_not_contiguous_is_compared_bit_for_bit():
    reference = make_reference(TWO, x=[[1.0, 2.0], [3.0, 4.0]])
    wide = np.repeat(reference.original[INPUT], 2, axis=1)[:, ::2]
    elsewhere = dataclasses.replace(reference, original={**reference.original, INPUT: wide})
    for x, y in ((reference, wide), (elsewhere, reference.original[INPUT])):
        assert judge("model", [INPUT], {INPUT: y}, x)[0].failures == ()


def test_a_missing_output_does_not_count_as_another_order():
    outputs = make_reference(TWO).original
    found = judge(
        "model", [PRE, POST], {POST: outputs[POST], PRE: outputs[PRE], "more": outputs[PRE]}, make_reference(TWO)
    )
    assert [verdict.hook for verdict in found] == [PRE, POST, "more", "(order)"]
    found = judge("model", [PRE, POST, RECONS], {POST: outputs[POST], PRE: outputs[PRE]}, make_reference(TWO))
    assert [verdict.hook for verdict in found if verdict.failures] == [RECONS]


def test_a_note_counts_the_tokens_that_follow_the_graphs_decisions():
    reference = make_reference(TWO, diverging_tokens=np.array([True, False]))
    notes = {v.hook: v.note for v in judge("model", list(reference.original), reference.original, reference)}
    after = "(1 token judged after the graph's own decisions)"
    assert notes == {INPUT: "", PRE: "", POST: "", RECONS: after, ERROR: after, OUTPUT: after}


def test_weights_of_lower_precision_may_switch_on_other_features():
    reference = make_reference(TWO, budget=9.0)
    y = np.zeros((2, 3), np.float32)
    assert judge("acts", [POST], {POST: y}, reference)[0].failures
    assert judge("acts", [POST], {POST: y}, dataclasses.replace(reference, rounded=True))[0].failures == ()


def test_the_sum_is_rounded_to_the_dtype():
    """1 + 2^-9 lies between two values of bfloat16."""
    reference = make_reference([[1.0, -1.0]], dtype="bfloat16")
    outputs = {RECONS: np.ones((1, 2), np.float32), ERROR: np.full((1, 2), 2**-9, np.float32)}
    for output, passes in ((1.0, True), (1 + 2**-9, False)):
        total = {**outputs, OUTPUT: np.full((1, 2), output, np.float32)}
        found = judge("model", [RECONS, ERROR, OUTPUT], total, dataclasses.replace(reference, recorded=None))
        assert any("they must be equal" in failure for v in found for failure in v.failures) == (not passes)

"""Which decisions of a graph are adopted, and what must follow from them, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from runtime.parity.decisions import Stages, adopt_decisions, follow_graph, follow_steered_graph
from tests.support.references import ERROR, OUTPUT, POST, PRE, RECONS, decoded, make_reference, make_steered

ULP = 2.0**-23  # between 1 and 2, in float32; half of it is a rounding


class Recorded:
    """A decoder that adds up the activations and 100, and notes the tokens that it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, tokens, acts_post):
        self.given.append(tokens.tolist())
        assert len(acts_post) == tokens.sum()
        return decoded(acts_post) + 100


def above(threshold, size=lambda pre: pre):
    """Return an activation function that switches on what is larger than a threshold."""

    def activate(tokens, pre):
        assert len(pre) == (tokens.sum() if tokens.dtype == bool else len(tokens)) > 0  # not run without a token
        return np.where(size(pre) > threshold, pre, 0)

    return activate


def largest(tokens, pre):
    """Switch on the largest feature, the first one of a tie."""
    return np.where(np.arange(pre.shape[1]) == pre.argmax(axis=1)[:, None], pre, 0)


def follow(reference, activate, acts_post, acts_pre=None, recons=None, decode=None):
    """Return the reference that follows a graph with these outputs."""
    outputs = {POST: np.array(acts_post, np.float32)}
    outputs |= {} if acts_pre is None else {PRE: np.array(acts_pre, np.float32)}
    outputs |= {} if recons is None else {RECONS: np.array(recons, np.float32)}
    return follow_graph(reference, outputs, Stages(activate, decode))


def is_adopted(reference, activate, acts_post, acts_pre=None):
    """Tell whether the reference follows all decisions of a graph, or stays as it is."""
    truth = follow(reference, activate, acts_post, acts_pre).truth[POST]
    if ((truth != 0) == (np.array(acts_post) != 0)).all():
        return True
    assert (truth == reference.truth[POST]).all()
    return False


# Decisions that the graph's own acts_pre explains


def test_the_decision_of_activate_is_adopted_and_nothing_else():
    reference = make_reference([[0.999, 3.0, -2.0], [0.5, 2.0, 4.0]], acts_post=[[0, 3, 0], [0, 2, 4]])
    decode = Recorded()
    pre, post = [[1.001, 3.001, -2.0], [0.501, 2.0, 4.0]], [[1.001, 3.001, 0], [0, 2, 4]]
    followed = follow(reference, above(1), post, pre, recons=np.zeros((2, 2)), decode=decode)
    assert followed.truth[POST] == pytest.approx(np.array([[1.001, 3, 0], [0, 2, 4]]))
    assert followed.truth[POST].dtype == np.float64
    assert followed.truth[PRE] is reference.truth[PRE]
    assert followed.diverging_tokens.tolist() == [True, False]
    assert decode.given == [[True, False]]
    assert followed.truth[RECONS] == pytest.approx(np.array([[104.002] * 2, [6] * 2]))
    assert followed.truth[ERROR] == pytest.approx(np.array([[-103.002] * 2, [-5] * 2]))
    assert followed.truth[OUTPUT] == pytest.approx(np.ones((2, 2)))
    assert followed.budgets is reference.budgets


def test_the_reconstruction_follows_a_feature_that_is_off_as_well():
    reference = make_reference([[1.001, 3.0]], acts_post=[[1.001, 3]])
    followed = follow(reference, above(1), [[0, 3]], [[0.999, 3]], recons=[[0, 0]], decode=Recorded())
    assert followed.truth[POST].tolist() == [[0, 3]]
    assert followed.truth[RECONS].tolist() == [[103, 103]]


def test_without_a_reconstruction_nothing_is_decoded():
    reference = make_reference([[0.999, 3.0]], acts_post=[[0, 3]])
    followed = follow(reference, above(1), [[1.001, 3]], [[1.001, 3]])
    assert followed.truth[POST][0, 0] > 1
    assert followed.diverging_tokens is None


@pytest.mark.parametrize("pre", [[[0.5, 3.0]], [[0.0, 0.0]]], ids=["alike", "zeros"])
def test_a_graph_that_decides_alike_follows_the_original(pre):
    reference = make_reference(pre)
    followed = follow(reference, above(0), reference.original[POST], pre, recons=[[0, 0]])
    assert followed is reference


def test_a_feature_that_moves_by_less_than_the_tolerance_does_not_change_the_reconstruction():
    reference = make_reference([[-0.005, 3.0]])  # the tolerance is 0.01 of the root of 4.5
    for move, changes in ((0.02, False), (0.03, True)):
        followed = follow(reference, above(0), [[move, 3]], [[move, 3]], recons=[[0, 0]], decode=Recorded())
        assert (followed.truth[POST][0] > 0).all()
        assert (followed.diverging_tokens is not None) == changes


def test_with_weights_of_lower_precision_no_decision_is_followed():
    reference = make_reference([[0.5, 3.0]], rounded=True)
    assert follow(reference, None, [[0, 3]], [[0.5, 3]]) is reference


@pytest.mark.parametrize("scale", [1.0, -1.0, 64.0, -64.0])
@pytest.mark.parametrize(("roundings", "explained"), [(1.5, True), (2.5, False)])
def test_a_graph_may_decide_before_it_rounds(scale, roundings, explained):
    """Its acts_pre may be two halves of a unit in the last place away from that on which it decided."""
    activate = above(abs(scale), np.abs)
    inside, outside = scale * (1 - roundings * ULP / 2), scale * (1 + roundings * ULP / 2)
    off, on = (
        make_reference([[scale, 99 * scale]], [[0, 99 * scale]]),
        make_reference([[scale, 99 * scale]], [[scale, 99 * scale]]),
    )
    for reference, pre, post in ((off, inside, inside), (on, outside, 0.0)):
        pre, post = np.array([[pre, 99 * scale]]), np.array([[post, 99 * scale]])
        followed = follow_graph(reference, {PRE: pre, POST: post}, Stages(activate, None))
        assert ((followed.truth[POST] != 0) == (post != 0)).all() == explained
        if explained:
            assert followed.truth[POST] == pytest.approx(post, rel=1e-12)
        else:
            assert followed is reference


def test_a_single_feature_may_decide_before_it_rounds():
    reference = make_reference([[1.0]], acts_post=[[0]])
    assert is_adopted(reference, above(1), [[1.0]], [[1.0]])


def test_a_decision_that_its_acts_pre_contradicts_is_not_adopted():
    reference = make_reference([[0.5, 3.0, -2.0]])
    assert not is_adopted(reference, above(0), [[0, 3, 0]], [[0.5, 3, -2]])
    assert not is_adopted(reference, above(0), [[0.5, 3, 2]], [[0.5, 3, -2]])


# Decisions that some acts_pre within the tolerance explains


@pytest.mark.parametrize("sign", [1, -1])
def test_an_acts_pre_within_the_tolerance_explains_a_decision(sign):
    """The tolerance is 0.01 * sqrt(5)."""
    for pre, explained in ((0.98, True), (0.97, False)):
        reference = make_reference([[sign * pre, sign * 3.0]], [[0, sign * 3]])
        assert is_adopted(reference, above(1, np.abs), [[sign * pre, sign * 3]]) == explained
        if explained:
            followed = follow(reference, above(1, np.abs), [[sign * pre, sign * 3]])
            assert followed.truth[POST] == pytest.approx(np.float32([[sign * pre, sign * 3]]), abs=1e-12)
    for pre, explained in ((1.02, True), (1.03, False)):
        reference = make_reference([[sign * pre, sign * 3.0]], [[sign * pre, sign * 3]])
        assert is_adopted(reference, above(1, np.abs), [[0, sign * 3]]) == explained


@pytest.mark.parametrize("sign", [1, -1])
def test_a_small_preactivation_does_not_cross_zero(sign):
    """It is off at 0, and on beyond it."""
    reference = make_reference([[sign * 0.005, 3.0]], [[sign * 0.005, 3]])
    assert is_adopted(reference, above(0.004, np.abs), [[0, 3]])


def test_a_preactivation_of_zero_may_be_on():
    reference = make_reference([[0.0, 3.0]])
    followed = follow(reference, above(0), [[1e-9, 3]])
    assert 0 < followed.truth[POST][0, 0] < 1e-6
    assert followed.truth[POST][0, 1] == 3


@pytest.mark.parametrize(("pre", "post"), [(-0.499, 0.0), (-0.501, -0.501)])
def test_an_activation_function_that_does_not_switch_on_what_is_large(pre, post):
    """Negative features are on above -0.5. Towards 0 they stay on, and away from it off; the sign tells the way."""
    original = pre if pre > -0.5 else 0.0
    reference = make_reference([[pre, 3.0]], [[original, 3]])
    followed = follow(reference, above(-0.5), [[post, 3]])
    assert followed.truth[POST] == pytest.approx(np.float32([[post, 3]]), abs=1e-12)


def test_each_token_is_explained_in_its_own_way():
    """The first by size, the second by sign, the third not at all; the fourth decides like the original."""
    activate = above(-0.5)
    pre = [[-0.499, 3.0], [-0.501, 3.0], [-0.9, 3.0], [0.2, 3.0]]
    reference = make_reference(pre, [[-0.499, 3], [0, 3], [0, 3], [0.2, 3]])
    followed = follow(reference, activate, [[0, 3], [-0.501, 3], [-0.9, 3], [0.2, 3]])
    assert followed.truth[POST] == pytest.approx(np.float32([[0, 3], [-0.501, 3], [0, 3], [0.2, 3]]), abs=1e-12)


def test_a_decision_is_explained_with_all_others_of_its_token():
    """Only one feature can be the largest."""
    reference = make_reference([[2.99, 3.0, 1.0]], [[0, 3, 0]])
    assert is_adopted(reference, largest, [[2.99, 0, 0]])
    assert not is_adopted(reference, largest, [[2.99, 3, 0]])
    assert not is_adopted(reference, largest, [[0, 0, 0]])
    assert not is_adopted(reference, largest, [[0, 0, 1]])


def test_of_two_decisions_of_a_token_one_is_not_explained_alone():
    """The tolerance is 0.01 times the root of a third of 10.2."""
    reference = make_reference([[0.99, 0.5, 3.0]], [[0, 0, 3]])
    assert is_adopted(reference, above(1), [[0.99, 0, 3]])
    assert not is_adopted(reference, above(1), [[0.99, 0.5, 3]])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_move_by_size_comes_before_one_by_value(sign):
    """Both explain the second feature; the first one is on in any case, and shows which move was made."""

    def cubed(tokens, pre):
        return np.where(np.abs(pre) > 1, pre**3, 0)

    reference = make_reference([[2.0 * sign, 1.0]], [[0, 0]])
    own = [[2.0 * sign, 1.0]]
    truth = follow(reference, cubed, [[8 * sign, 1]], own).truth[POST]
    assert truth == pytest.approx(np.array([[8 * sign * (1 + ULP) ** 2, (1 + ULP) ** 2]]), rel=ULP / 16)


# Decisions that acts_pre does not determine


@pytest.mark.parametrize("flips", [None, np.array([0])], ids=["tie", "gate"])
def test_both_decisions_of_an_uncertain_feature_are_adopted(flips):
    uncertain = np.array([[True, True, False]])
    reference = make_reference([[3.0, 3.0, 1.0]], [[3, 0, 0]], uncertain=uncertain, flips=flips)
    pre = [[3.0, 3.0, 1.0]]
    assert follow(reference, largest, [[0, 3, 0]], pre).truth[POST].tolist() == [[0, 3, 0]]
    for post in ([[3, 3, 0]], [[0, 0, 0]]):
        adopted = follow(reference, largest, post, pre).truth[POST]
        assert adopted.tolist() == ([[3, 0, 0]] if flips is None else post)
    for post in ([[3, 0, 1]], [[0, 0, 1]]):  # the last one is certain
        assert follow(reference, largest, post, pre).truth[POST][0, 2] == 0


def test_a_gate_that_is_certain_is_explained_although_another_is_uncertain():
    """What `activate` decides about the uncertain one does not matter."""
    uncertain = np.array([[True, False]])
    reference = make_reference([[2.0, 0.999]], [[0, 0]], uncertain=uncertain, flips=np.array([1]))
    for own, post in (([2.001, 1.001], [0, 1.001]), ([2.001, 1.001], [2, 1.001]), ([2.001, 1.0], [0, 1.0])):
        followed = follow(reference, above(1), [post], [own])
        assert followed.truth[POST] == pytest.approx(np.float32([post]), abs=1e-12)


def test_a_tie_of_the_original_is_no_tie_of_a_graph_with_another_acts_pre():
    reference = make_reference([[3.0, 3.0, 1.0]], [[3, 0, 0]], uncertain=np.array([[True, True, False]]))
    assert is_adopted(reference, largest, [[0, 3, 0]], [[3.0, 3.0, 1.0]])
    assert not is_adopted(reference, largest, [[0, 3, 0]], [[3.001, 3.0, 1.0]])


def test_a_tie_gives_its_place_to_as_many_features():
    uncertain = np.array([[True, True, False], [False, False, False]])
    reference = make_reference([[3.0, 3.5, 1.0], [3.0, 1.0, 1.0]], [[3, 0, 0], [3, 0, 0]], uncertain=uncertain)
    assert adopt_decisions(reference, np.array([[0, 3.0, 0], [3, 0, 0]])).truth[POST].tolist() == [
        [0, 3.5, 0],
        [3, 0, 0],
    ]
    for post in ([[0.0, 0, 0], [3, 0, 0]], [[3.0, 3, 0], [3, 0, 0]], [[3.0, 0, 0], [0, 1, 0]]):
        assert adopt_decisions(reference, np.array(post)) is reference
    # Other tokens do not count.
    adopted = adopt_decisions(reference, np.array([[0, 3.0, 0], [3.0, 1.0, 0]]))
    assert adopted.truth[POST].tolist() == [[0, 3.5, 0], [3, 0, 0]]


def test_where_nothing_is_uncertain_nothing_is_adopted():
    reference = make_reference([[3.0, 1.0]])
    assert adopt_decisions(reference, np.array([[0.0, 1.0]])) is reference


# Under an intervention


def edited(use_error_term=True, **more):
    """Return a reference whose feature 1 is doubled and 3 added to feature 2, and that without the edits."""
    clean = make_reference([[1.0, 2.0, 0.5], [0.5, 0.25, 4.0]], use_error_term=use_error_term, **more)
    return make_steered(clean, [1, 2], [2.0, 1.0], [0.0, 3.0]), clean


@pytest.mark.parametrize("error_term", [True, False])
def test_an_edit_follows_the_decisions_of_the_clean_pass(error_term):
    steered, clean = edited(error_term)
    decided = clean.truth[POST].copy()
    decided[0, 1], decided[0, 2] = 0.0, 0.0
    error = clean.truth[ERROR] + [[7], [0]]
    followed_clean = clean.with_truth({POST: decided, ERROR: error}, diverging_tokens=np.array([True, False]))
    acts, decode = np.array([[1.0, 0.0, 3.0], [0.5, 0.5, 7.0]]), Recorded()
    before = steered.truth[RECONS].copy()
    followed = follow_steered_graph(steered, followed_clean, acts, decode)
    assert followed.truth[POST].tolist() == [[1, 0, 3], [0.5, 0.5, 7]]
    assert decode.given == [[True, False]]
    assert followed.truth[RECONS].tolist() == [[104, 104], [8, 8]]
    assert followed.truth[ERROR].tolist() == error.tolist()
    assert (followed.truth[OUTPUT] == followed.truth[RECONS] + (error if error_term else 0)).all()
    assert followed.diverging_tokens.tolist() == [True, False]
    assert (steered.truth[RECONS] == before).all()


def test_an_edit_of_a_graph_that_decides_alike_keeps_its_truth():
    """The truth of an edit is not the edit of the truth: the original edits rounded activations."""
    steered, clean = edited()
    steered = dataclasses.replace(steered, truth={**steered.truth, POST: steered.truth[POST] + 1e-9})
    followed = follow_steered_graph(steered, clean, steered.original[POST], None)
    assert (followed.truth[POST] == steered.truth[POST]).all()
    assert followed.truth[RECONS] is steered.truth[RECONS]
    assert followed.diverging_tokens is None


def test_an_edit_with_weights_of_lower_precision_follows_nothing():
    steered, clean = edited(rounded=True)
    assert follow_steered_graph(steered, clean, steered.original[POST] * 0, None) is steered

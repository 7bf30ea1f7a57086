"""Which decisions of a graph are right: the features that are on in one correct program and off in another.

A feature whose preactivation lies within rounding of a threshold, or of the k-th largest, is such a one; in half
precision a wide SAE has some on nearly every token. What is right there is not a matter of size. So the stages are
judged apart, each given what the original gave to it, and a graph that is several stages is held to its own:

    the truth               decides as the original did
    acts_pre                does not depend on decisions: it is judged against the truth
    `activate`, alone       is given the original's acts_pre, and must decide as the original did
    acts_post               of any other graph must have on what `activate` of the same artifact switches on, given the
                            graph's own acts_pre, to one rounding; of a graph that does not show it, some acts_pre
                            within the budget of the truth's must explain what is on
    `decode`, alone         is judged on the original's activations, on every token
    recons, error, output   of a graph that decided otherwise on a token are judged there against what `decode` of the
                            same artifact makes of the activations that the graph gave

A wrong threshold, k or decoder therefore fails in its stage, whatever was decided elsewhere, and one that is wrong only
inside another graph fails there.

Two decisions no acts_pre tells: which of two features is on that tie exactly for the last place, and what a gate says
that is computed of the input within rounding of its threshold. Such features are *uncertain*: there both decisions are
right (`saeexport.proof.decisions` finds them). Of those that tie, as many must be on as in the original. Of gates the
number of other decisions is bounded: `FACTOR` times as many as the original decides otherwise than the truth would by
itself, and `ALLOWED_CHANCE_FLIPS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..arrays.tensor import Array
from ..artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_RECONS
from .reference import FLOOR, Hooks, Reference, SteeredReference, behind

Stage: TypeAlias = Callable[[Array, Array], Array]
"""From which tokens, `(tokens,)` boolean, and what they have before it, to what they have behind it."""

SMALLEST = 2.0**-24
"""To what part of itself an activation shrinks at least, when its preactivation is moved back over zero."""


@dataclass(frozen=True)
class Stages:
    """The stages of an artifact behind the encoder's product, each a graph of its own that is judged by itself.

    Attributes:
        activate: from acts_pre to acts_post.
        decode: from acts_post to recons.
    """

    activate: Stage
    decode: Stage


def follow_graph(reference: Reference, outputs: Hooks, stages: Stages) -> Reference:
    """Return the reference for a graph that gave these outputs, with those of its decisions that are right.

    Args:
        reference: what is right with the original's decisions.
        outputs: acts_post and, unless the graph does not show it, acts_pre.
        stages: of the same artifact.
    """
    if reference.rounded:
        return reference
    acts_post = outputs[HOOK_ACTS_POST]
    decided = _explain_support(reference, acts_post, outputs.get(HOOK_ACTS_PRE), stages.activate)
    if reference.flips is not None:
        decided = adopt_decisions(decided, acts_post)
    moved = np.abs(decided.truth[HOOK_ACTS_POST] - reference.truth[HOOK_ACTS_POST])
    otherwise = (moved > reference.acts_pre_tolerance).any(axis=1)  # by less a ReLU may, for which the budget is there
    if HOOK_RECONS not in outputs or not otherwise.any():
        return decided
    recons = reference.truth[HOOK_RECONS].copy()
    recons[otherwise] = stages.decode(otherwise, acts_post[otherwise])
    error = reference.error_target - recons if HOOK_ERROR in reference.truth else None
    return decided.with_truth(behind(recons, error, reference.use_error_term), diverging_tokens=otherwise)


def adopt_decisions(reference: Reference, acts_post: Array) -> Reference:
    """Return the reference that decides about uncertain features as these activations do."""
    truth, other = reference.truth[HOOK_ACTS_POST], reference.alternative_acts
    swapped = reference.is_uncertain & ((acts_post != 0) != (truth != 0))
    if reference.flips is None:  # of those that tie, as many have a place in any case
        swapped &= ((acts_post != 0).sum(axis=1) == (truth != 0).sum(axis=1))[:, None]
    if other is None or not swapped.any():
        return reference
    return reference.with_truth(
        {HOOK_ACTS_POST: np.where(swapped, other, truth)}, alternative_acts=np.where(swapped, truth, other)
    )


def follow_steered_graph(steered: SteeredReference, clean: Reference, acts_post: Array, decode: Stage) -> Reference:
    """Return the reference for a graph that gave these activations, and decided as `clean` follows.

    What an edit hides, the decision of the edited feature, shows in the clean pass of the same graph.
    """
    if steered.rounded:
        return steered
    changed = clean.truth[HOOK_ACTS_POST] != steered.clean.truth[HOOK_ACTS_POST]
    edited = steered.intervention(clean.truth[HOOK_ACTS_POST])
    truth = {HOOK_ACTS_POST: np.where(changed, edited, steered.truth[HOOK_ACTS_POST])}
    if clean.diverging_tokens is not None:
        recons = steered.truth[HOOK_RECONS].copy()
        recons[clean.diverging_tokens] = decode(clean.diverging_tokens, acts_post[clean.diverging_tokens])
        truth.update(behind(recons, clean.truth.get(HOOK_ERROR), steered.use_error_term))
    return steered.with_truth(truth, diverging_tokens=clean.diverging_tokens)


def _explain_support(reference: Reference, acts_post: Array, own_pre: Array | None, activate: Stage) -> Reference:
    """Return the reference that decides as `activate` does of a graph's own acts_pre, or of some that is near."""
    pre = (reference.truth[HOOK_ACTS_PRE] if own_pre is None else own_pre).astype(np.float64)
    step = reference.acts_pre_tolerance if own_pre is None else 2 * FLOOR[reference.dtype] * np.abs(pre)
    on, truth = acts_post != 0, reference.truth[HOOK_ACTS_POST]
    certain = ~reference.is_uncertain | (reference.flips is None)  # a tie is explained, too
    decided = activate(np.ones(len(on), bool), pre).astype(np.float64)
    contested = (((decided != 0) != on) & certain).any(axis=1)
    outwards = np.where(on, np.sign(acts_post), np.sign(pre))
    # As far as may be in favour of what the graph decided: what is on outwards, what is off inwards, to zero at most;
    # or, where what is large is not what is on, what is on upwards and what is off downwards.
    for favour in (
        np.where(on, step * outwards, -np.minimum(step, np.abs(pre)) * outwards),
        np.where(on, step, -step),
    ):
        if not contested.any():
            break
        moved = (pre + favour)[contested]
        found = activate(contested, moved).astype(np.float64)
        explains = ~(((found != 0) != on[contested]) & certain[contested]).any(axis=1)
        back = np.clip(pre[contested] / np.where(moved == 0, 1.0, moved), SMALLEST, 1 / SMALLEST)
        places = np.flatnonzero(contested)[explains]
        decided[places] = (found * back)[explains]  # an activation is in proportion to its preactivation
        contested[places] = False
    if own_pre is None:
        decided[contested] = truth[contested]  # for the message: what is not explained is wrong
    changed = ((decided != 0) != (truth != 0)) & certain
    return reference.with_truth({HOOK_ACTS_POST: np.where(changed, decided, truth)}) if changed.any() else reference

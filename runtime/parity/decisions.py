"""The decisions of the parity rule, which is `docs/parity.md`: which features a graph may switch on or off.

Rounding decides about a feature whose preactivation is at a threshold, or as large as the k-th largest. In half
precision a wide SAE has such features on nearly every token. How large the difference is says nothing about which
decision is correct. Each stage is therefore judged on the values before it:

    output                     from                      must be
    -------------------------  ------------------------  ----------------------------------------------------------
    acts_pre                   the input                 the truth
    acts_post of `activate`    the original's acts_pre   the truth, with the original's decisions
    acts_post of other graphs  the graph's acts_pre      the truth, with the decisions of `activate`
    recons of `decode`         the original's acts_post  the truth
    recons, error of others    the graph's acts_post     the truth; on tokens with other decisions, what `decode` gives

A graph decides as `activate` decides for the graph's acts_pre, or for one that is moved by two roundings in favour of
the graph's decisions, because a graph may decide before it rounds. If the graph does not return its acts_pre, it is the
truth's, moved by its tolerance. A token has other decisions if one changes an activation by more than its tolerance.

For two kinds of features acts_pre does not determine the decision, and both decisions are correct. The class of the
original tells which they are (`HookedSAE.undetermined`), and they are called *uncertain*. If one is on, its activation
is its acts_pre.

- In a top-k, features that tie exactly for the last place. `activate` must have as many on as the original; for the
  other graphs, the acts_pre that may be moved explains them.
- Features with a gate within rounding of its threshold. Over the batch, each graph may decide at most `FACTOR` times as
  many differently from the original as the original decides differently from the truth alone, plus
  `ALLOWED_CHANCE_FLIPS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..arrays.tensor import Array
from ..artifact.budgets import FLOOR
from ..artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_RECONS
from .reference import Hooks, Reference, SteeredReference, derive_outputs

Stage: TypeAlias = Callable[[Array, Array], Array]
"""A stage as a function of some tokens of a batch: `stage(tokens, values)` with a mask or the indices of the tokens,
and the values that they have before the stage. It returns the values after it."""


@dataclass(frozen=True)
class Stages:
    """The stages of an artifact after the encoder's product. Each is a graph of its own, judged by itself.

    Attributes:
        activate: The activation function, from acts_pre to acts_post.
        decode: The decoder, from acts_post to recons.
    """

    activate: Stage
    decode: Stage


def follow_graph(reference: Reference, outputs: Hooks, stages: Stages) -> Reference:
    """Return the reference for a graph with these outputs: it adopts those of the graph's decisions that are correct.

    Args:
        reference: The reference with the decisions of the original.
        outputs: The graph's acts_post and, if the graph outputs them, acts_pre and the hooks after it.
        stages: The stages of the same artifact.
    """
    if reference.rounded:
        return reference
    acts_post = outputs[HOOK_ACTS_POST]
    with_gates = reference if reference.flips is None else adopt_decisions(reference, acts_post)
    followed = _explain_support(with_gates, acts_post, outputs.get(HOOK_ACTS_PRE), stages.activate)
    moved = np.abs(followed.truth[HOOK_ACTS_POST] - reference.truth[HOOK_ACTS_POST])
    # At the kink of a ReLU a feature changes by less than the tolerance of acts_pre: the budgets cover that.
    diverging = (moved > reference.acts_pre_tolerance).any(axis=1)
    if HOOK_RECONS not in outputs or not diverging.any():
        return followed
    recons = stages.decode(diverging, acts_post[diverging])
    return followed.with_truth(reference.replace_recons(diverging, recons), diverging_tokens=diverging)


def adopt_decisions(reference: Reference, acts_post: Array) -> Reference:
    """Return the reference that decides about uncertain features as `acts_post` does."""
    on, truth = acts_post != 0, reference.truth[HOOK_ACTS_POST]
    flipped = reference.is_uncertain & (on != (truth != 0))
    if reference.flips is None:  # the features tie for k places, so that the number of those that are on is fixed
        flipped &= (on.sum(axis=1) == (truth != 0).sum(axis=1))[:, None]
    if not flipped.any():
        return reference
    decided = np.where(on, reference.truth[HOOK_ACTS_PRE], 0.0)
    return reference.with_truth({HOOK_ACTS_POST: np.where(flipped, decided, truth)})


def follow_steered_graph(steered: SteeredReference, clean: Reference, acts_post: Array, decode: Stage) -> Reference:
    """Return the reference for a graph that was run under an intervention.

    An edit hides the decision about the edited feature. It shows in the clean pass of the same graph, which `clean`
    follows.

    Args:
        steered: The reference with the decisions of the original.
        clean: What `follow_graph` returned for the same graph without an edit.
        acts_post: The activations of the graph under the intervention.
        decode: The decoder of the same artifact.
    """
    if steered.rounded:
        return steered
    changed = clean.truth[HOOK_ACTS_POST] != steered.clean.truth[HOOK_ACTS_POST]
    edited = steered.intervention(clean.truth[HOOK_ACTS_POST])
    truth = {HOOK_ACTS_POST: np.where(changed, edited, steered.truth[HOOK_ACTS_POST])}
    if clean.diverging_tokens is not None:
        recons = steered.truth[HOOK_RECONS].copy()
        recons[clean.diverging_tokens] = decode(clean.diverging_tokens, acts_post[clean.diverging_tokens])
        truth.update(derive_outputs(recons, clean.truth.get(HOOK_ERROR), steered.use_error_term))
    return steered.with_truth(truth, diverging_tokens=clean.diverging_tokens)


def _explain_support(reference: Reference, acts_post: Array, own_pre: Array | None, activate: Stage) -> Reference:
    """Return the reference with the decisions of `activate` for the graph's acts_pre, or for one close to it.

    Args:
        reference: The reference with the decisions of the original, but about uncertain gates with those of the graph.
        acts_post: The graph's activations.
        own_pre: The graph's acts_pre, which may move by two roundings; None lets the truth's move by its
            tolerance.
        activate: The activation function of the same artifact.
    """
    on, truth = acts_post != 0, reference.truth[HOOK_ACTS_POST]
    pre = (reference.truth[HOOK_ACTS_PRE] if own_pre is None else own_pre).astype(np.float64)
    gates = reference.is_uncertain & (reference.flips is not None)

    def decide(tokens: Array, acts_pre: Array) -> Array:
        return np.where(gates[tokens], truth[tokens], activate(tokens, acts_pre))

    decided = decide(np.ones(len(on), bool), pre)
    for move in (_move_by_size, _move_by_value):
        tokens = np.flatnonzero(((decided != 0) != on).any(axis=1))
        if not len(tokens):
            break
        given = pre[tokens]
        step = (
            2 * FLOOR[reference.dtype] * np.abs(given) if own_pre is not None else reference.acts_pre_tolerance[tokens]
        )
        moved = move(given, np.where(on[tokens], step, -step))
        found = decide(tokens, moved)
        explained = ((found != 0) == on[tokens]).all(axis=1)
        # The activation moved in proportion to its preactivation. Undo that, and leave on what is on.
        back = np.maximum(given / np.where(moved == 0, 1.0, moved), np.finfo(np.float64).eps)
        decided[tokens[explained]] = (found * back)[explained]
    changed = (decided != 0) != (truth != 0)
    return reference.with_truth({HOOK_ACTS_POST: np.where(changed, decided, truth)}) if changed.any() else reference


def _move_by_size(acts_pre: Array, by: Array) -> Array:
    """Return preactivations whose absolute values are larger by `by`, but not below zero."""
    return np.copysign(np.maximum(np.abs(acts_pre) + by, 0.0), acts_pre)


def _move_by_value(acts_pre: Array, by: Array) -> Array:
    """Return preactivations that are larger by `by`, for activation functions that do not switch on what is large."""
    moved: Array = acts_pre + by
    return moved

"""Which features decide otherwise in another correct program, and the truth after the decisions of one.

They are sought by moving the numbers about: a feature whose activation jumps, when the numbers before it move by a
little more than their error, is uncertain. What `runtime.parity` does about it is said there.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.inputs import Array
from runtime.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT, HOOK_RECONS
from runtime.parity import Reference, behind

from .architectures import ARCHITECTURES
from .hooked_sae import HookedSAE
from .precision import InFloat64
from .running import evaluating, inputs_of, numbers_of

REACH = 1.0
"""How far the preactivations are moved to find thresholds nearby, as a multiple of the most that they may err; those
within half of it are found. That is twice the largest error of the original: that a feature errs by more, just where
its threshold is that near, is not to be expected; and a farther reach calls features uncertain without need."""

APART = 8
"""In the order of their size every so many-th preactivation is moved against all others, for a k-th largest depends on
order. Each so meets all its neighbours, and few of them move with it."""

INPUT_REACH, INPUT_DRAWS = 4.0, 5
"""How much farther those are moved that no hook shows, such as a gate's, by moving the input: in directions at random,
of which each moves nine in ten of them by twice the original's error."""

JUMP, HALF_ON, HALF_OFF = 0.56, 0.6, 0.9
"""An activation that moves by more than `JUMP` of the reach may have crossed a threshold; it has, if with half the move
it still moves by most of that: by `HALF_ON` of it if it was off, by `HALF_OFF` if it was on. What is only steep moves
by half, and so does a ReLU that goes on; one that goes off moves by nine tenths only within 0.56 of the reach of its
kink. What jumps by less is within the budget."""


def with_decisions(sae: Any, reference: Reference) -> Reference:
    """Return a reference that knows its uncertain features, with a truth after its own original's decisions."""
    found = dataclasses.replace(reference, other=other_decisions(sae, reference))
    return after_decisions(sae, found, found.original[HOOK_ACTS_POST])


def after_decisions(sae: Any, reference: Reference, acts_post: Array) -> Reference:
    """Return the reference with a truth that decides as `acts_post` did, where it is uncertain and did otherwise."""
    truth, on = reference.truth[HOOK_ACTS_POST], acts_post != 0
    otherwise = reference.is_uncertain & (on != (truth != 0))
    if reference.other is None or not otherwise.any():
        return reference
    decided, other = np.where(otherwise, acts_post, truth), np.where(otherwise, truth, reference.other)
    recons = true_recons(sae, reference, decided)
    error = reference.against.astype(np.float64) - recons if HOOK_ERROR in reference.truth else None
    truths = {**reference.truth, HOOK_ACTS_POST: decided, **behind(recons, error, reference.use_error_term)}
    return dataclasses.replace(reference, truth=truths, other=other)


def true_recons(sae: Any, reference: Reference, acts_post: Array) -> Array:
    """Return the reconstruction from activations `(tokens, d_sae)` in float64, of the inputs of a reference."""
    return _at(sae, [reference.original[HOOK_INPUT], reference.target], HOOK_ACTS_POST, acts_post, HOOK_RECONS)


def other_decisions(sae: Any, reference: Reference) -> Array | None:
    """Return acts_post, in float64, where each uncertain feature decides otherwise; None if there is no threshold."""
    if type(sae) in ARCHITECTURES.values() and type(sae).activation is HookedSAE.activation:
        return None  # a ReLU is continuous
    error = REACH * reference.budgets[HOOK_ACTS_PRE].element
    acts_pre, acts_post = reference.truth[HOOK_ACTS_PRE], reference.truth[HOOK_ACTS_POST]
    reach = error * reference.scale(HOOK_ACTS_PRE)[:, None] / np.sqrt(acts_pre.shape[1])
    x = reference.original[HOOK_INPUT].astype(np.float64)

    def moved(x_moved: Array, pre_moved: Array) -> tuple[Array, Array]:
        """Return the activations, and by how much they moved."""
        post = _activations(sae, reference, x_moved, pre_moved)
        return post, np.abs(post - acts_post)

    other = acts_post.copy()
    for x_step, pre_step in itertools.chain(_orders(acts_pre, reach), _inputs(INPUT_REACH * error * x)):
        whole, half = (functools.partial(moved, x + part * x_step, acts_pre + part * pre_step) for part in (1.0, 0.5))
        post, move = whole()
        steep = (move > JUMP * reach) & (move > np.abs(other - acts_post))
        if steep.any():
            jumps = steep & (half()[1] > np.where(acts_post == 0, HALF_ON, HALF_OFF) * move)
            other[jumps] = post[jumps]
    return other


def _orders(acts_pre: Array, reach: Array) -> Iterator[tuple[Any, Any]]:
    """Yield moves of the preactivations, by which each crosses every threshold and every other one nearby."""
    places = np.empty(acts_pre.shape, np.int64)
    ranks = np.broadcast_to(np.arange(acts_pre.shape[1]), acts_pre.shape)
    np.put_along_axis(places, np.argsort(np.abs(acts_pre), axis=1), ranks, axis=1)
    for first in range(min(APART, acts_pre.shape[1])):
        outwards = np.where(places % APART == first, 1.0, -1.0) * np.where(acts_pre < 0, -1.0, 1.0) * reach
        yield 0.0, outwards
        yield 0.0, -outwards


def _inputs(moves: Array) -> Iterator[tuple[Any, Any]]:
    """Yield moves of the input, in directions at random."""
    draws = np.random.default_rng(0)
    for _ in range(INPUT_DRAWS):
        x_step = moves * draws.choice([-1.0, 1.0], moves.shape)
        yield x_step, 0.0
        yield -x_step, 0.0


def _activations(sae: Any, reference: Reference, x: Array, acts_pre: Array) -> Array:
    """Return `acts_post` in float64, of an input and preactivations put in the place of its own."""
    if isinstance(sae, HookedSAE) and type(sae).run is HookedSAE.run:  # no need to run the encoder first
        with evaluating(sae), InFloat64():
            (source, pre) = inputs_of(sae, x, acts_pre)
            return numbers_of(sae.activation(pre, sae.flatten(source)))
    return _at(sae, [x, reference.target], HOOK_ACTS_PRE, acts_pre, HOOK_ACTS_POST)


def _at(sae: Any, inputs: Sequence[Array | None], where: str, value: Array, hook: str) -> Array:
    """Return a hook's tensor in float64, after another one was replaced; nothing behind it is run."""
    seen: list[Tensor] = []

    def replace(tensor: Tensor, hook: Any) -> Tensor:
        return torch.from_numpy(value).to(tensor.device)

    def keep(tensor: Tensor, hook: Any) -> None:
        seen.append(tensor)
        raise _Seen

    with contextlib.suppress(_Seen), evaluating(sae), InFloat64():
        sae.run_with_hooks(*inputs_of(sae, *inputs), fwd_hooks=[(where, replace), (hook, keep)])
    return numbers_of(seen[0])


class _Seen(Exception):  # noqa: N818
    """What was asked for is there; nothing after it is run."""

"""Finds the value of a host's graph at a hook: names propose, numbers decide.

A value is identified by the activation at the hook, from PyTorch or from a file: it has the same numbers, and no other
value has, except those that only give it another shape or dtype. Without an activation, the SAE recognises its own
tensor by the variance that it explains, and the scopes that exporters write into a graph have to say the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.arrays.dtypes import BFLOAT16, FLOAT32
from runtime.artifact.folder import Artifact
from runtime.errors import GraftError
from runtime.hosts.manifest import Evidence

from .candidates import LIMIT, LIMIT_OF_WIDENED, REFERENCE, Candidate, Reference, rank, views_of
from .host import Host
from .names import split_hook

SEPARATION = 4.0
"""A value fits as well as the best one if its error is less than this many times larger. What rounding adds on the way
from one tensor to the next is less; a tensor that differs by a residual, a gain or a bias is further away."""

SAME = 1e-6
"""Error below which values are the same in every dtype, so that an error of exactly 0 does not exclude its copies."""

MIN_EXPLAINED = 0.6
"""Least variance that an SAE has to explain if that alone identifies its tensor. Published SAEs explain 0.6 to 0.99."""

CLEARLY_MORE, CLEARLY_LESS_LOST = 0.05, 1.4
"""An SAE belongs to another tensor if it explains more of it by at least so much, and loses this many times less there.
An SAE explains 0.1 less of the layers next to its own. It explains only 0.01 less of the tensor before the last bias of
a norm, which is told apart by its numbers."""

UNLIKE = 0.0
"""An SAE that explains less than this of its tensor knows less about it than its typical token does."""

EXPLAINED, FORCED = "variance_explained", "forced"


@dataclass(frozen=True)
class Located:
    """The value at a hook, and how it was identified."""

    value: str
    evidence: Evidence


def find(
    host: Host, hook: str, sae: Artifact, reference: Reference, value: str | None = None, force: bool = False,
    is_target: bool = False,
) -> Located:  # fmt: skip
    """Return the value of a host at a hook, with the evidence.

    Args:
        host: The host.
        hook: TransformerLens name.
        sae: The SAE that is grafted there.
        reference: Feeds, and the activation at the hook if there is one.
        value: Name of the value if the caller knows it; it is confirmed as if it had been found.
        force: Whether to take `value` although it is not confirmed.
        is_target: Whether the hook is that of a transcoder's target, and not of what it reads.

    Raises:
        GraftError: No value is the tensor at the hook, several are, it cannot be proved, or the SAE does not fit.
    """
    width = sae.manifest.sae.d_out if is_target else sae.manifest.sae.d_in
    ranked = rank(host, hook, sae, reference, only=value if force else None, width=width)
    return decide(host, hook, sae, reference, ranked, value, force, is_target)


def decide(
    host: Host,
    hook: str,
    sae: Artifact,
    reference: Reference,
    ranked: Sequence[Candidate],
    value: str | None = None,
    force: bool = False,
    is_target: bool = False,
) -> Located:
    """Return the value at a hook out of its candidates; see `find`.

    Raises:
        GraftError: No value is the tensor at the hook, several are, it cannot be proved, or the SAE does not fit.
    """
    if not ranked:
        raise GraftError(_no_candidate(host, hook, sae, value, is_target))
    if force:
        if value is None:
            raise GraftError(f"{hook}: a value can only be forced by its name. Pass {hook}@VALUE.")
        chosen = ranked[0]
        return Located(value, Evidence(FORCED, chosen.error, None, None, chosen.variance_explained, reference.tokens()))
    check_trained_at(hook, sae, is_target)
    if hook in reference.activations:
        best, runner_up = _by_error(host, hook, ranked, _limit(host, ranked[0], reference))
    else:
        best, runner_up = _by_variance(host, hook, ranked)
    if value is not None and value not in (best.value, *(c.value for c in ranked if c.alias_of == best.value)):
        raise GraftError(
            f"{hook}: {value} was asked for, but {best.value} is the tensor at the hook ({_describe(best)}). Leave the "
            f"value away, or graft at {value} without this confirmation (force=True, --force)."
        )
    if best.variance_explained is not None and best.variance_explained < UNLIKE:
        raise GraftError(
            f"{hook}: the tensor at the hook is {best.value}, but the SAE {sae.path} explains "
            f"{best.variance_explained:.0%} of its variance, less than nothing. It was trained on another tensor, or "
            "on a model whose weights were changed before (fold_ln, centred weights). To graft it nevertheless, name "
            f"the value: {hook}@{best.value} with force=True, --force."
        )
    _check_explains_no_other_better(hook, sae, best, ranked)
    return Located(
        best.value,
        Evidence(
            reference.method if hook in reference.activations else EXPLAINED,
            best.error,
            None if runner_up is None else runner_up.value,
            None if runner_up is None else runner_up.error,
            best.variance_explained,
            reference.tokens(),
        ),
    )


def _check_explains_no_other_better(hook: str, sae: Artifact, best: Candidate, ranked: Sequence[Candidate]) -> None:
    """Refuse an SAE that explains another tensor clearly better than the one at the hook.

    Raises:
        GraftError: It was trained at the other tensor, or under a name that means another tensor there.
    """
    if best.variance_explained is None:
        return
    other = max(ranked, key=lambda candidate: candidate.variance_explained or -np.inf)
    more, lost = other.variance_explained, 1 - best.variance_explained
    if more is None or more - best.variance_explained < CLEARLY_MORE or lost < CLEARLY_LESS_LOST * (1 - more):
        return
    raise GraftError(
        f"{hook}: the tensor at the hook is {best.value}, of which the SAE {sae.path} explains "
        f"{best.variance_explained:.1%}, but it explains {more:.1%} of {other.value}: it was trained there. Name the "
        f"hook of that tensor, or the value: {hook}@{other.value} with force=True, --force."
    )


def check_trained_at(hook: str, sae: Artifact, is_target: bool = False) -> None:
    """Refuse an SAE that says that it was trained at another hook; names that are not TransformerLens' say nothing.

    Args:
        hook: The hook.
        sae: The SAE.
        is_target: Whether the hook is that of a transcoder's target.

    Raises:
        GraftError: It is refused.
    """
    trained = target_hook(sae) if is_target else sae.manifest.sae.hook_name
    try:
        same = split_hook(trained) == split_hook(hook)
    except GraftError:
        return
    if not same:
        did = "predicts" if is_target else "was trained at"
        raise GraftError(
            f"{hook}: the SAE {sae.path} {did} {trained}. Graft it there, or name the value to graft it at, "
            f"{hook}@VALUE, with force=True, --force."
        )


def target_hook(sae: Artifact) -> str:
    """Return the name of the hook of the activation that a transcoder predicts; "" if it does not say so."""
    return str(sae.manifest.sae.options.get("hook_name_out", ""))


def _limit(host: Host, best: Candidate, reference: Reference) -> float:
    """Return the largest error that the value at a hook may have."""
    if not host.is_widened:
        return LIMIT.get(best.dtype, LIMIT[FLOAT32])
    return LIMIT_OF_WIDENED if reference.method == REFERENCE else LIMIT[BFLOAT16]


def _by_error(host: Host, hook: str, ranked: Sequence[Candidate], limit: float) -> tuple[Candidate, Candidate | None]:
    best = ranked[0]
    assert best.error is not None
    if not best.error <= limit:
        raise GraftError(
            f"{hook}: no value of the host {host.path} is the tensor at the hook. The nearest one is {best.value}, "
            f"{best.error:.1e} of a token's norm away from the activation ({limit:.0e} is allowed). The tensor may lie "
            "inside a fused operator, or the host may have other weights, or weights of fewer bits, than the model "
            f"that the activation is from. To graft there nevertheless: {hook}@{best.value} with force=True, --force."
        )
    same = [c for c in ranked if c.error is not None and c.error <= max(SEPARATION * best.error, SAME)]
    others = [c for c in ranked if c not in same]
    return _first(host, hook, same), others[0] if others else None


def _by_variance(host: Host, hook: str, ranked: Sequence[Candidate]) -> tuple[Candidate, Candidate | None]:
    measured = [c for c in ranked if c.variance_explained is not None]
    ask = (
        "Pass the folder of the same model for transformers (hf=, --hf), or a file with activations (reference=, "
        "--reference)."
    )
    if not measured:
        raise GraftError(
            f"{hook}: there is no activation to compare with, and no value is reconstructed by the SAE, so that none "
            f"can be confirmed. {ask}"
        )
    best = measured[0]
    assert best.variance_explained is not None
    if best.variance_explained < MIN_EXPLAINED:
        raise GraftError(
            f"{hook}: the SAE explains {best.variance_explained:.0%} of the variance of {best.value} and less of every "
            f"other value; {MIN_EXPLAINED:.0%} are needed to confirm one without an activation. {ask}"
        )
    proposals = [c for c in ranked if c.proposed]
    same = [c for c in measured if c.alias_of == best.value or c is best]
    if not any(c.proposed for c in same):
        names = ", ".join(c.value for c in proposals) or "no value: the graph does not have the scopes of its modules"
        raise GraftError(
            f"{hook}: the SAE explains most of {best.value} ({best.variance_explained:.0%}), but the names in the "
            f"graph propose {names}. {ask}"
        )
    others = [c for c in measured if c not in same]
    return _first(host, hook, same), others[0] if others else None


def _first(host: Host, hook: str, same: Sequence[Candidate]) -> Candidate:
    """Return the first of several values with the same numbers, after checking that the others are views of it."""
    order = {str(value.name): i for i, value in enumerate(host.values().values())}
    first, *others = sorted(same, key=lambda candidate: order[candidate.value])
    values = host.values()
    views = views_of(values[first.value])
    if strangers := [c.value for c in others if c.value not in views]:
        raise GraftError(
            f"{hook}: {first.value} and {', '.join(strangers)} have the same numbers, but are computed apart, so that "
            f"one of them would stay as it is. Name the one to replace: {hook}@VALUE with force=True, --force."
        )
    return first


def _describe(candidate: Candidate) -> str:
    parts: Iterable[str] = (
        "" if candidate.error is None else f"error {candidate.error:.1e}",
        "" if candidate.variance_explained is None else f"{candidate.variance_explained:.1%} of the variance explained",
    )
    return ", ".join(part for part in parts if part)


def _no_candidate(host: Host, hook: str, sae: Artifact, value: str | None, is_target: bool) -> str:
    cfg = sae.manifest.sae
    width, does = (cfg.d_out, "predicts") if is_target else (cfg.d_in, "reads")
    what, isnt = ("No value", "is") if value is None else (f"The value {value}", "is not")
    return (
        f"{hook}: {what} of the host {host.path} {isnt} a tensor of floats {width} wide, as the SAE {sae.path} {does}, "
        "for each token. The SAE belongs to another model or hook, or the tensor lies inside a fused operator."
    )

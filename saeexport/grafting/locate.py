"""Finds the value of a host's graph at a hook: names propose, numbers decide.

A value is identified by the activation at the hook, from PyTorch or from a file: it has the same numbers, and no other
value has, except those that only give it another shape or dtype. Without an activation, the SAE recognises its own
tensor by the variance that it explains, and the scopes that exporters write into a graph have to say the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from runtime.arrays.tensor import Array
from runtime.artifact.folder import Artifact
from runtime.artifact.names import HOOK_RECONS
from runtime.errors import GraftError
from runtime.hosts.manifest import Evidence
from runtime.hosts.names import ATTENTION_MASK
from runtime.session.session import SAESession

from .host import Host
from .names import split_hook
from .probe import FLOATS, candidates, read
from .scopes import propose

LIMIT = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""Largest error of a value against the activation at its hook, by the dtype of the value. The rounding of six blocks is
3e-7, 5e-3 and 4e-2; the nearest wrong tensor of a model with random weights is 5e-3 off in float32."""

SEPARATION = 4.0
"""A value fits as well as the best one if its error is less than this many times larger. What rounding adds on the way
from one tensor to the next is less; a tensor that differs by a residual, a gain or a bias is further away."""

SAME = 1e-6
"""Error below which values are the same in every dtype, so that an error of exactly 0 does not exclude its copies."""

MIN_EXPLAINED = 0.6
"""Least variance that an SAE has to explain if that alone identifies its tensor. Published SAEs explain 0.6 to 0.99."""

CLEARLY_MORE, CLEARLY_LESS_LOST = 0.05, 1.4
"""An SAE belongs to another tensor if it explains more of it by at least so much, and loses this many times less there.
Of the layers next to the one that it was trained at, an SAE explains 0.1 less; of the tensor before the last bias of a
norm it explains 0.01 less, and that one is told by its numbers."""

MEASURED_FLOPS = 4e12
"""Bound on the work of running the SAE on every candidate, about a minute. Beyond it, it runs on those that fit."""

UNLIKE = 0.0
"""An SAE that explains less than this of its tensor knows less about it than its typical token does."""

VIEWS = ("Cast", "Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Dropout")
"""Operators that give a tensor another shape or dtype only."""

GOLDEN, REFERENCE, EXPLAINED, FORCED = "golden", "reference", "variance_explained", "forced"


@dataclass(frozen=True)
class Reference:
    """What a value is compared with.

    Attributes:
        feeds: Inputs of the host by name.
        activations: Hook to the activation there, `(batch, positions, width)` or `(batch, positions, n_heads, d_head)`;
            empty if there is neither a PyTorch model nor a file with activations.
        method: Where they come from, "reference" for PyTorch or "golden" for a file.
    """

    feeds: Mapping[str, Array]
    activations: Mapping[str, Array] = field(default_factory=dict)
    method: str = REFERENCE

    def mask(self) -> "Array | None":
        """Return which positions are not padding, `(batch, positions)` bool; None if the host takes no mask."""
        mask = self.feeds.get(ATTENTION_MASK)
        return None if mask is None or mask.ndim != 2 else mask != 0


@dataclass(frozen=True)
class Candidate:
    """A value of the host that may be the tensor at a hook.

    Attributes:
        value: Its name.
        operator: Operator that computes it.
        shape: Its shape on the feeds.
        dtype: Its dtype; "" if the graph does not say.
        error: Largest norm of its difference from the activation at the hook relative to the norm of the activation,
            over tokens; None if there is no activation.
        variance_explained: What the SAE explains of it (`variance_explained`); None if it was not measured.
        proposed: Whether the scopes in the graph say that it is the tensor.
        alias_of: Name of the first value with the same numbers; None if this is the first one.
    """

    value: str
    operator: str
    shape: tuple[int, ...]
    dtype: str
    error: float | None
    variance_explained: float | None
    proposed: bool
    alias_of: str | None = None


@dataclass(frozen=True)
class Located:
    """The value at a hook, and how it was identified."""

    value: str
    evidence: Evidence


def find(
    host: Host, hook: str, sae: Artifact, reference: Reference, value: str | None = None, force: bool = False
) -> Located:
    """Return the value of a host at a hook, with the evidence.

    Args:
        host: The host.
        hook: TransformerLens name.
        sae: The SAE that is grafted there.
        reference: Feeds, and the activation at the hook if there is one.
        value: Name of the value if the caller knows it; it is confirmed as if it had been found.
        force: Whether to take `value` although it is not confirmed.

    Raises:
        GraftError: No value is the tensor at the hook, several are, it cannot be proved, or the SAE does not fit.
    """
    ranked = rank(host, hook, sae, reference, only=value if force else None)
    return decide(host, hook, sae, reference, ranked, value, force)


def decide(
    host: Host,
    hook: str,
    sae: Artifact,
    reference: Reference,
    ranked: Sequence[Candidate],
    value: str | None = None,
    force: bool = False,
) -> Located:
    """Return the value at a hook out of its candidates; see `find`.

    Raises:
        GraftError: No value is the tensor at the hook, several are, it cannot be proved, or the SAE does not fit.
    """
    if not ranked:
        raise GraftError(_no_candidate(host, hook, sae, value))
    if force:
        if value is None:
            raise GraftError(f"{hook}: a value can only be forced by its name. Pass {hook}@VALUE.")
        chosen = ranked[0]
        return Located(value, Evidence(FORCED, chosen.error, None, None, chosen.variance_explained, _tokens(reference)))
    check_trained_at(hook, sae)
    choose = _by_error if hook in reference.activations else _by_variance
    best, runner_up = choose(host, hook, ranked)
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
            _tokens(reference),
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


def check_trained_at(hook: str, sae: Artifact) -> None:
    """Refuse an SAE that says that it was trained at another hook; names that are not TransformerLens' say nothing.

    Raises:
        GraftError: It is refused.
    """
    trained = sae.manifest.sae.hook_name
    try:
        same = split_hook(trained) == split_hook(hook)
    except GraftError:
        return
    if not same:
        raise GraftError(
            f"{hook}: the SAE {sae.path} was trained at {trained}. Graft it there, or name the value to graft it at, "
            f"{hook}@VALUE, with force=True, --force."
        )


def rank(host: Host, hook: str, sae: Artifact, reference: Reference, only: str | None = None) -> list[Candidate]:
    """Return the values of a host that may be the tensor at a hook, the best one first.

    The variance that the SAE explains is measured for all of them if that is affordable or there is no activation to
    compare with, otherwise for those near the activation.

    Args:
        host: The host.
        hook: TransformerLens name.
        sae: The SAE that is grafted there.
        reference: Feeds, and the activation at the hook if there is one.
        only: Name of the only value to look at; None looks at all of the right width.

    Raises:
        GraftError: ONNX Runtime cannot run the host, or the activation does not fit the SAE.
    """
    width = sae.manifest.sae.d_in
    expected = reference.activations.get(hook)
    mask, positions = reference.mask(), _positions(reference, expected, width, hook)
    rows = None if expected is None else _rows(expected, width, mask)
    if not _tokens(reference):
        raise GraftError(f"{hook}: the feeds do not have a token that is not masked, so that nothing can be compared.")
    values = [value for value in candidates(host.model, width) if only is None or value.name == only]
    proposed = propose(host.graph, hook, width)
    found: list[Candidate] = []
    explains = _Explainer(sae)
    flops = 4.0 * positions * width * sae.manifest.sae.d_sae * len(values)
    affordable = flops <= MEASURED_FLOPS
    for value, array in read(host.model, host.path.absolute().parent, values, reference.feeds, positions * width):
        if array.shape[-1] != width and (array.ndim < 3 or array.shape[-1] * array.shape[-2] != width):
            continue
        own = _rows(array, width, mask)
        error = np.inf if rows is None else _error(own, rows)
        measured = rows is None or affordable or error <= max(LIMIT.values())
        producer = value.producer()
        found.append(
            Candidate(
                str(value.name), "" if producer is None else producer.op_type, array.shape,
                FLOATS.get(value.dtype, "") if value.dtype is not None else "", None if rows is None else error,
                explains(own) if measured else None, value.name in proposed,
            )
        )  # fmt: skip
    return _mark_aliases(host, sorted(found, key=_rank))


def variance_explained(x: Array, recons: Array) -> float:
    """Return the fraction of its variance that a reconstruction explains of the median token.

    That is the median over tokens of `1 - |x - recons|^2 / |x - center|^2`, where `center` is the median of each
    dimension, because a few tokens with huge norms, as the first of a sequence has, would decide a mean.

    Args:
        x: Activations, `(tokens, width)`.
        recons: Reconstructions, `(tokens, width)`.
    """
    center = np.median(x, axis=0)
    scale = np.square(x - center).sum(axis=1)
    lost = np.square(x - recons).sum(axis=1)
    return float(np.median(1 - lost / np.maximum(scale, np.finfo(np.float32).tiny)))


class _Explainer:
    """Runs the SAE on candidates; a transcoder does not reconstruct what it reads, so that nothing is measured."""

    def __init__(self, sae: Artifact) -> None:
        self._reconstructs = sae.manifest.sae.d_out is None
        self._dtype = sae.manifest.sae.dtype
        self._session = SAESession(sae.path, device="cpu") if self._reconstructs else None

    def __call__(self, rows: Array) -> float | None:
        if self._session is None or not len(rows):
            return None
        with np.errstate(all="ignore"):
            x = rows.astype(self._dtype)
            if not np.isfinite(x.astype(np.float32)).all():
                return None
            recons = self._session.compute(x, [HOOK_RECONS])[HOOK_RECONS]
            return variance_explained(rows, np.asarray(recons, np.float32).reshape(rows.shape))


def _rank(candidate: Candidate) -> tuple[float, float]:
    error = np.inf if candidate.error is None or not np.isfinite(candidate.error) else candidate.error
    explained = -np.inf if candidate.variance_explained is None else candidate.variance_explained
    return error, -explained


def _by_error(host: Host, hook: str, ranked: Sequence[Candidate]) -> tuple[Candidate, Candidate | None]:
    best, limit = ranked[0], LIMIT.get(ranked[0].dtype, LIMIT["float32"])
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
    views = _views_of(values[first.value])
    if strangers := [c.value for c in others if c.value not in views]:
        raise GraftError(
            f"{hook}: {first.value} and {', '.join(strangers)} have the same numbers, but are computed apart, so that "
            f"one of them would stay as it is. Name the one to replace: {hook}@VALUE with force=True, --force."
        )
    return first


def _mark_aliases(host: Host, ranked: list[Candidate]) -> list[Candidate]:
    """Return the candidates, of which those that are views of an earlier one say so."""
    values = host.values()
    names = {candidate.value for candidate in ranked}
    first: dict[str, str] = {}
    for name in (name for name in values if name in names):
        for view in _views_of(values[name]) & names:
            first.setdefault(view, first.get(name, name))
    return [
        Candidate(**{**vars(candidate), "alias_of": first[candidate.value]}) if candidate.value in first else candidate
        for candidate in ranked
    ]


def _views_of(value: ir.Value) -> set[str]:
    """Return the names of the values that only give `value` another shape or dtype."""
    views: set[str] = set()
    todo = [value]
    while todo:
        for use in todo.pop().uses():
            if use.node.op_type in VIEWS and use.idx == 0 and str(use.node.outputs[0].name) not in views:
                views.add(str(use.node.outputs[0].name))
                todo.append(use.node.outputs[0])
    return views


def _positions(reference: Reference, expected: "Array | None", width: int, hook: str) -> int:
    """Return the number of positions of the feeds, padding included."""
    if expected is None:
        mask = reference.mask()
        sizes = [feed.size for feed in reference.feeds.values() if feed.ndim == 2] if mask is None else [mask.size]
        if not sizes:
            raise GraftError(f"{hook}: the feeds do not say how many tokens they have; none is (batch, positions).")
        return sizes[0]
    if expected.shape[-1] != width and (expected.ndim < 3 or expected.shape[-1] * expected.shape[-2] != width):
        raise GraftError(
            f"{hook}: the activation there has shape {expected.shape}, but the SAE takes activations {width} wide. It "
            "was trained at another hook, or on another model."
        )
    return expected.size // width


def _rows(array: Array, width: int, mask: "Array | None") -> Array:
    rows = array.reshape(-1, width).astype(np.float32)
    return rows if mask is None or mask.size != len(rows) else rows[mask.reshape(-1)]


def _error(rows: Array, expected: Array) -> float:
    """Return the largest norm of the difference of a token relative to its own norm; infinite if it is not a number."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(expected.astype(np.float64), axis=1)
        differences = np.linalg.norm(rows.astype(np.float64) - expected, axis=1)
        error = float((differences / np.maximum(norms, np.finfo(np.float32).tiny)).max(initial=0.0))
    return error if np.isfinite(error) else np.inf


def _tokens(reference: Reference) -> int:
    mask = reference.mask()
    if mask is not None:
        return int(mask.sum())
    return max((feed.size for feed in reference.feeds.values() if feed.ndim == 2), default=0)


def _describe(candidate: Candidate) -> str:
    parts: Iterable[str] = (
        "" if candidate.error is None else f"error {candidate.error:.1e}",
        "" if candidate.variance_explained is None else f"{candidate.variance_explained:.1%} of the variance explained",
    )
    return ", ".join(part for part in parts if part)


def _no_candidate(host: Host, hook: str, sae: Artifact, value: str | None) -> str:
    width = sae.manifest.sae.d_in
    what = "No value" if value is None else f"The value {value}"
    return (
        f"{hook}: {what} of the host {host.path} is a tensor of floats {width} wide, as the SAE {sae.path} reads, for "
        "each token. The SAE belongs to another model or hook, or the tensor lies inside a fused operator."
    )

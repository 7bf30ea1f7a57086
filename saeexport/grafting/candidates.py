"""Measures which values of a host may be the tensor at a hook.

Every value of the right width is compared with the activation at the hook, from PyTorch or from a file, and with what
the SAE reconstructs of it. `locate` decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from runtime.arrays.tensor import Array
from runtime.artifact.folder import Artifact
from runtime.artifact.names import HOOK_RECONS
from runtime.errors import GraftError
from runtime.hosts.feeds import is_token
from runtime.session.session import SAESession

from .host import Host
from .probe import FLOATS, candidates, read
from .scopes import propose

REFERENCE, GOLDEN = "reference", "golden"

LIMIT = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""Largest error of a value against the activation at its hook, by the dtype of the value. The rounding of six blocks is
3e-7, 5e-3 and 4e-2; the nearest wrong tensor of a model with random weights is 5e-3 off in float32."""

LIMIT_OF_WIDENED = 1e-2
"""The same for a host that was exported in bfloat16 and computes in float32, against PyTorch in float32. Its weights
are those of the reference, and only its constants are rounded: those of GPT-2's activation function move the tensor
behind it by 4e-4. The activations of a file may have been computed in bfloat16."""

VIEWS = ("Cast", "Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Dropout")
"""Operators that give a tensor another shape or dtype only."""

MEASURED_FLOPS = 4e12
"""Bound on the work of running the SAE on every candidate, about a minute. Beyond it, it runs on those that fit."""


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
        """Return which positions are not padding, `(batch, positions)` bool; None if the feeds are not `(batch, ...)`.

        Tokens in a cache come first in the mask of the host, and are no positions.
        """
        mask = is_token(self.feeds) if self.feeds else None
        return None if mask is None or mask.ndim != 2 else mask

    def tokens(self) -> int:
        """Return the number of positions that are not padding."""
        mask = self.mask()
        return 0 if mask is None else int(mask.sum())


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


def rank(
    host: Host, hook: str, sae: Artifact, reference: Reference, only: str | None = None, width: int | None = None
) -> list[Candidate]:
    """Return the values of a host that may be the tensor at a hook, the best one first.

    The variance that the SAE explains is measured for all of them if that is affordable or there is no activation to
    compare with, otherwise for those near the activation.

    Args:
        host: The host.
        hook: TransformerLens name.
        sae: The SAE that is grafted there.
        reference: Feeds, and the activation at the hook if there is one.
        only: Name of the only value to look at; None looks at all of the right width.
        width: Width of the activation; None for that of what the SAE reads.

    Raises:
        GraftError: ONNX Runtime cannot run the host, or the activation does not fit the SAE.
    """
    width = width or sae.manifest.sae.d_in
    expected = reference.activations.get(hook)
    mask, positions = reference.mask(), _positions(reference, expected, width, hook)
    rows = None if expected is None else _rows(expected, width, mask)
    if not reference.tokens():
        raise GraftError(f"{hook}: the feeds do not have a token that is not masked, so that nothing can be compared.")
    values = [value for value in candidates(host.model, width) if only is None or value.name == only]
    proposed = propose(host.graph, hook, width)
    found: list[Candidate] = []
    explains = _Explainer(sae)
    flops = 4.0 * positions * width * sae.manifest.sae.d_sae * len(values)
    affordable = flops <= MEASURED_FLOPS
    for value, array in read(host.model, host.path.absolute().parent, values, reference.feeds, positions * width):
        if not _has_width(array, width):
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


def _mark_aliases(host: Host, ranked: list[Candidate]) -> list[Candidate]:
    """Return the candidates, of which those that are views of an earlier one say so."""
    values = host.values()
    names = {candidate.value for candidate in ranked}
    first: dict[str, str] = {}
    for name in (name for name in values if name in names):
        for view in views_of(values[name]) & names:
            first.setdefault(view, first.get(name, name))
    return [
        replace(candidate, alias_of=first[candidate.value]) if candidate.value in first else candidate
        for candidate in ranked
    ]


def views_of(value: ir.Value) -> set[str]:
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
        if mask is None:
            raise GraftError(f"{hook}: the feeds do not say how many tokens they have; none is (batch, positions).")
        return mask.size
    if not _has_width(expected, width):
        raise GraftError(
            f"{hook}: the activation there has shape {expected.shape}, but the SAE has one {width} wide there. "
            "It was trained at another hook, or on another model."
        )
    return expected.size // width


def _has_width(array: Array, width: int) -> bool:
    """Tell whether an array is `(..., width)`, or `(..., n_heads, d_head)` with heads that are `width` together."""
    return array.shape[-1] == width or (array.ndim > 2 and array.shape[-1] * array.shape[-2] == width)


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

"""How closeness is judged: the one place that says what "nothing changed" means.

Truth is the same weights evaluated in float64. The error of a tensor `y` at a hook is measured twice, against the size
`s` of the numbers that it was computed from:

    token   = max over tokens   of  ||y - truth|| / s
    element = max over elements of  |y - truth| * sqrt(width) / s

    s = ||acts_pre||            for hook_sae_acts_pre and hook_sae_acts_post
    s = ||input|| + ||recons||  for hook_sae_recons, hook_sae_error and hook_sae_output

(`input` is the target where a transcoder's error is taken against one.)

A ReLU cuts and an error term cancels, so that a tensor's own norm can be arbitrarily small, even zero, while its
rounding errors are not; the norms above are of what goes in. `token` sees an error that is spread (a product of lower
precision), `element` one that is concentrated (one wrong weight).

The budget is calibrated by the PyTorch original's own error, measured in the same way, in the same dtype, on the same
inputs: `budget = FACTOR * original + FLOOR[dtype] * roundings`, the last as `Reference.floor` counts them. So one rule
serves every size, dtype and device.

Under an intervention on features the reconstruction is the clean one plus an update, so that `s` and the original's own
error are those of both passes: `s = ||input|| + ||recons|| + ||clean recons||`, and `original` the larger of the two.
An edit that ablates every feature leaves `b_dec`, which the original has without any error, and the update as what
remains of two large numbers. And the sum of two rounded numbers is rounded once more, for which the floor has a unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from .errors import ParityError
from .inputs import Array
from .interventions import Intervention
from .manifest import Errors
from .names import (
    FEATURE_HOOKS,
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_NAMES,
    HOOK_OUTPUT,
    HOOK_RECONS,
)
from .report import Verdict

FACTOR = 4.0
"""Two correct programs that add the same products in another order have errors that differ by a factor. The largest one
that `python -m benchmarks.parity` sees over sizes, sparsities, architectures and numbers of tokens is 2.2
(benchmarks/results); the rest is for processors and GPUs that add in yet other orders."""

FLOOR = {"float32": 2.0**-24}
"""Half a unit in the last place: what one correct rounding of the result costs, where the original happens to be exact.
A dtype without a row cannot be judged: truth itself is no better than float64, and ONNX Runtime's CPU computes float16
in float32 and rounds the outputs, so that the exact sum below does not hold in it."""

COMPUTED_HOOKS = HOOK_NAMES[1:]

Hooks: TypeAlias = Mapping[str, Array]
Budgets: TypeAlias = Mapping[str, Errors]


@dataclass(frozen=True)
class Reference:
    """What an artifact is judged against, on a batch of inputs.

    Attributes:
        original: the hooks as PyTorch computed them, in the SAE's dtype, `(tokens, ...)`: all six, the error even where
            it does not fire; of a transcoder without the error term, the five that fire.
        truth: the same without the input, in float64.
        use_error_term: whether the output is to be the reconstruction plus the error.
        target: of a transcoder with the error term, what the error is taken against.
        left_out: how many tokens are not among them because a feature is too near its threshold to be sure of.
        recorded: budgets that were measured before, on this batch or a larger one; None measures them.
        rounded: whether the artifact's weights are of less precision, so that it may switch other features on.
    """

    original: Hooks
    truth: Hooks
    use_error_term: bool
    target: Array | None = None
    recorded: Budgets | None = None
    left_out: int = 0
    rounded: bool = False

    def __post_init__(self) -> None:
        for name, array in {**self.original, **{f"truth of {k}": v for k, v in self.truth.items()}}.items():
            if not np.isfinite(array).all():
                index = _index(int(np.argmin(np.isfinite(array))), array.shape)
                raise ParityError(
                    f"{name} is {array[index]} at {list(index)}: parity is judged on finite numbers only. "
                    "Look for it in the activations and in the weights."
                )

    @property
    def tokens(self) -> int:
        """How many inputs there are."""
        return len(self.original[HOOK_INPUT])

    @cached_property
    def budgets(self) -> Budgets:
        """The most that each computed hook may err."""
        if self.recorded is not None:
            return self.recorded
        budgets = {}
        for hook in self.truth:
            own, floor = self.own_errors(hook), self.floor(hook)
            budgets[hook] = Errors(FACTOR * own.token + floor, FACTOR * own.element + floor)
        return budgets

    def scale(self, hook: str) -> Array:
        """Return `s` of the module's docstring, `(tokens,)` float64."""
        if hook in FEATURE_HOOKS:
            return _norms(self.truth[HOOK_ACTS_PRE])
        against = self.original[HOOK_INPUT] if self.target is None else self.target
        return _norms(against) + _norms(self.truth[HOOK_RECONS])

    def own_errors(self, hook: str) -> Errors:
        """Return the original's own errors, by which the budget is calibrated."""
        return self.errors(hook, self.original[hook])

    def floor(self, hook: str) -> float:
        """Return the error that is allowed where the original happens to be exact: the roundings of the result.

        Of the error and of the output they are two: `input - recons` is rounded, and what goes into it or comes of it.
        """
        return FLOOR[self.original[hook].dtype.name] * (2 if hook in (HOOK_ERROR, HOOK_OUTPUT) else 1)

    def errors(self, hook: str, y: Array) -> Errors:
        """Return how far `y` is from the truth of `hook`."""
        token, element = self._error_arrays(hook, y)
        return Errors(float(token.max(initial=0.0)), float(element.max(initial=0.0)))

    def token_errors(self, hook: str, y: Array) -> Array:
        """Return how far each token of `y` is from the truth of `hook`, `(tokens,)`."""
        return self._error_arrays(hook, y)[0]

    def worst(self, hook: str, y: Array) -> tuple[int, ...]:
        """Return the index of the element of `y` that is farthest from the truth."""
        _, element = self._error_arrays(hook, y)
        return _index(int(np.argmax(element)), y.shape)

    def _error_arrays(self, hook: str, y: Array) -> tuple[Array, Array]:
        truth = _rows(self.truth[hook])
        difference = np.abs(_rows(y).astype(np.float64) - truth)
        scale = self.scale(hook)
        with np.errstate(divide="ignore", invalid="ignore"):  # of no size at all, nothing but the truth will do
            token = np.nan_to_num(np.linalg.norm(difference, axis=1) / scale, nan=0.0, posinf=np.inf)
            element = np.nan_to_num(difference * np.sqrt(truth.shape[1]) / scale[:, None], nan=0.0, posinf=np.inf)
        return token, element


@dataclass(frozen=True)
class SteeredReference(Reference):
    """What an artifact is judged against under an intervention on features.

    Attributes:
        clean: the reference of the same inputs without it.
        intervention: the edits that the original was run with.
    """

    clean: Reference = field(kw_only=True)
    intervention: Intervention = field(kw_only=True)

    def scale(self, hook: str) -> Array:
        """Return `s` of the module's docstring, `(tokens,)` float64."""
        own = super().scale(hook)
        return own if hook in FEATURE_HOOKS else own + _norms(self.clean.truth[HOOK_RECONS])

    def own_errors(self, hook: str) -> Errors:
        """Return the larger of the original's own errors in the two passes."""
        steered, clean = super().own_errors(hook), self.clean.own_errors(hook)
        return Errors(max(steered.token, clean.token), max(steered.element, clean.element))

    def floor(self, hook: str) -> float:
        """Return the error that is allowed where the original happens to be exact: an update is rounded once more."""
        one = FLOOR[self.original[hook].dtype.name]
        return super().floor(hook) + (one if hook in (HOOK_RECONS, HOOK_OUTPUT) else 0.0)


def judge(graph: str, expected: Sequence[str], outputs: Hooks, reference: Reference) -> list[Verdict]:
    """Return a verdict for each output of a graph, and for each that is missing or should not be there.

    Args:
        graph: its name, for the messages.
        expected: the hooks that the graph has to give, in order.
        outputs: what it gave, in its order.
        reference: what to judge against, and with which budgets.
    """
    verdicts = []
    for hook in expected:
        if hook not in outputs:
            verdicts.append(_failed(graph, hook, f"the output is missing; there are {', '.join(outputs) or 'none'}"))
        elif shape := _form_differs(outputs[hook], reference.original[hook]):
            verdicts.append(_failed(graph, hook, shape))
        elif hook == HOOK_INPUT:
            verdicts.append(_judge_input(graph, outputs[hook], reference))
        else:
            verdicts.append(_judge_computed(graph, hook, outputs, reference))
    extra = f"there should be no such output; expected are {', '.join(expected)}"
    verdicts += [_failed(graph, hook, extra) for hook in outputs if hook not in expected]
    present = [hook for hook in outputs if hook in expected]
    if sorted(present) == sorted(expected) and present != list(expected):
        verdicts.append(_failed(graph, "(order)", f"outputs are {', '.join(outputs)}, expected {', '.join(expected)}"))
    return verdicts


def _failed(graph: str, hook: str, why: str) -> Verdict:
    return Verdict(graph, hook, None, None, (f"{graph}: {hook}: {why}.",))


def _form_differs(y: Array, original: Array) -> str:
    if y.dtype == original.dtype and y.shape == original.shape:
        return ""
    return f"it is {y.shape} {y.dtype}, the original {original.shape} {original.dtype}"


def _judge_input(graph: str, y: Array, reference: Reference) -> Verdict:
    x = reference.original[HOOK_INPUT]
    bits = f"u{x.itemsize}"
    different = np.ascontiguousarray(y).view(bits) != np.ascontiguousarray(x).view(bits)
    if not different.any():
        return Verdict(graph, HOOK_INPUT, None, None)
    index = _index(int(np.argmax(different)), x.shape)
    return _failed(
        graph, HOOK_INPUT, f"it is {y[index]:.9g} at {list(index)}, the input {x[index]:.9g}; it must be its bits"
    )


def _judge_computed(graph: str, hook: str, outputs: Hooks, reference: Reference) -> Verdict:
    y, budget = outputs[hook], reference.budgets[hook]
    finite = np.isfinite(y)
    if not finite.all():
        index = _index(int(np.argmin(finite)), y.shape)
        return _failed(
            graph, hook, f"it is {y[index]} at {list(index)}, the original {reference.original[hook][index]}"
        )
    errors, failures, note = reference.errors(hook, y), [], ""
    for kind in ("token", "element"):
        error, allowed = getattr(errors, kind), getattr(budget, kind)
        if not error <= allowed:
            index = reference.worst(hook, y)
            failures.append(
                f"{graph}: {hook}: the {kind} error is {error:.3e}, its budget {allowed:.3e}. Worst at {list(index)}: "
                f"the artifact has {y[index]:.9g}, the original {reference.original[hook][index]:.9g}, "
                f"the truth is {reference.truth[hook][index]:.12g}."
            )
    if hook == HOOK_ACTS_POST and not reference.rounded:
        flips, failure = _judge_support(graph, y, reference)
        failures += failure
        note = f"({flips} at the kink)" if flips else ""
    if hook == HOOK_OUTPUT:
        failures += _judge_sum(graph, outputs, reference.use_error_term)
    return Verdict(graph, hook, errors, budget, tuple(failures), note)


def _judge_support(graph: str, y: Array, reference: Reference) -> tuple[int, list[str]]:
    """Count the features that are on in one and off in the other; only at the kink, within its error, is that right."""
    on, pre = reference.truth[HOOK_ACTS_POST] != 0, reference.truth[HOOK_ACTS_PRE]
    flipped = (y != 0) != on
    reach = reference.budgets[HOOK_ACTS_PRE].element * reference.scale(HOOK_ACTS_PRE) / np.sqrt(pre.shape[-1])
    wrong = flipped & (np.abs(pre) > reach[:, None])
    if not wrong.any():
        return int(flipped.sum()), []
    token, feature = _index(int(np.argmax(wrong)), wrong.shape)
    return int(flipped.sum()), [
        f"{graph}: {HOOK_ACTS_POST}: feature {feature} of token {token} is {'off' if on[token, feature] else 'on'} "
        f"({y[token, feature]:.9g}), and its preactivation is {pre[token, feature]:.6g}, more than the "
        f"{reach[token]:.1e} of rounding from the kink. So are {int(wrong.sum()) - 1} more."
    ]


def _judge_sum(graph: str, outputs: Hooks, use_error_term: bool) -> list[str]:
    """Return why the output is not exactly the reconstruction, or its sum with the error."""
    parts = (HOOK_RECONS, HOOK_ERROR) if use_error_term else (HOOK_RECONS,)
    if any(part not in outputs or _form_differs(outputs[part], outputs[HOOK_OUTPUT]) for part in parts):
        return []  # the part has a verdict of its own
    total = sum((outputs[part] for part in parts[1:]), start=outputs[parts[0]])
    different = total != outputs[HOOK_OUTPUT]
    if not different.any():
        return []
    index = _index(int(np.argmax(different)), different.shape)
    return [
        f"{graph}: {HOOK_OUTPUT}: it is {outputs[HOOK_OUTPUT][index]:.9g} at {list(index)}, and {' + '.join(parts)} is "
        f"{total[index]:.9g}; they must be equal."
    ]


def _rows(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _norms(array: Array) -> Array:
    return np.linalg.norm(_rows(array).astype(np.float64), axis=1)


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))

"""Verdicts: the outputs of a graph against a reference, each with every reason why it fails."""

from collections.abc import Sequence

import numpy as np

from ..arrays.dtypes import rounded
from ..arrays.tensor import Array
from ..artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT, HOOK_OUTPUT, HOOK_RECONS
from .reference import Hooks, Reference, index_of
from .report import Verdict


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
    index = index_of(int(np.argmax(different)), x.shape)
    return _failed(
        graph, HOOK_INPUT, f"it is {y[index]:.9g} at {list(index)}, the input {x[index]:.9g}; it must be its bits"
    )


def _judge_computed(graph: str, hook: str, outputs: Hooks, reference: Reference) -> Verdict:
    y, budget = outputs[hook], reference.budgets[hook]
    finite = np.isfinite(y)
    if not finite.all():
        index = index_of(int(np.argmin(finite)), y.shape)
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
        failures += _judge_support(graph, y, reference)
        if reference.n_flipped > reference.max_flipped:
            failures.append(
                f"{graph}: {hook}: {reference.n_flipped} features near the threshold of a gate are on in one and "
                f"off in the other; rounding explains {reference.max_flipped:.0f}."
            )
        otherwise = int(((reference.truth[hook] != 0) != (reference.original[hook] != 0)).sum())
        note = f"({otherwise} decided otherwise)" if otherwise else ""
    elif reference.diverging_tokens is not None:
        note = f"({int(reference.diverging_tokens.sum())} tokens after other decisions)"
    if hook == HOOK_OUTPUT:
        failures += _judge_sum(graph, outputs, reference)
    return Verdict(graph, hook, errors, budget, tuple(failures), note)


def _judge_support(graph: str, y: Array, reference: Reference) -> list[str]:
    """Return which features are on in one and off in the other, and may not be."""
    on, pre = reference.truth[HOOK_ACTS_POST] != 0, reference.truth[HOOK_ACTS_PRE]
    wrong = ((y != 0) != on) & ~reference.support_is_free
    if not wrong.any():
        return []
    token, feature = index_of(int(np.argmax(wrong)), wrong.shape)
    return [
        f"{graph}: {HOOK_ACTS_POST}: feature {feature} of token {token} is {'off' if on[token, feature] else 'on'} "
        f"({y[token, feature]:.9g}), and no rounding explains it; its preactivation is {pre[token, feature]:.6g} in "
        f"truth, and may err by {reference.acts_pre_tolerance[token, feature]:.1e}. So are {int(wrong.sum()) - 1} more."
    ]


def _judge_sum(graph: str, outputs: Hooks, reference: Reference) -> list[str]:
    """Return why the output is not exactly the reconstruction, or its sum with the error, rounded."""
    parts = (HOOK_RECONS, HOOK_ERROR) if reference.use_error_term else (HOOK_RECONS,)
    if any(part not in outputs or _form_differs(outputs[part], outputs[HOOK_OUTPUT]) for part in parts):
        return []  # the part has a verdict of its own
    total = rounded(sum((outputs[part] for part in parts[1:]), start=outputs[parts[0]]), reference.dtype)
    different = total != outputs[HOOK_OUTPUT]
    if not different.any():
        return []
    index = index_of(int(np.argmax(different)), different.shape)
    return [
        f"{graph}: {HOOK_OUTPUT}: it is {outputs[HOOK_OUTPUT][index]:.9g} at {list(index)}, and {' + '.join(parts)} is "
        f"{total[index]:.9g}; they must be equal."
    ]

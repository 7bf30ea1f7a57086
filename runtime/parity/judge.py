"""Compares the outputs of a graph with a reference. Each output gets a verdict with every reason to fail."""

from collections.abc import Collection, Sequence

import numpy as np

from ..arrays.dtypes import rounded
from ..arrays.tensor import Array
from ..artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT, HOOK_OUTPUT, HOOK_RECONS
from .reference import Hooks, Reference, index_of
from .report import Verdict, and_more, count


def judge(
    graph: str, expected: Sequence[str], outputs: Hooks, reference: Reference, by_column: Collection[str] = ()
) -> list[Verdict]:
    """Return a verdict for each output that a graph must have, and for each that it should not have.

    Args:
        graph: Name of the graph, for the messages.
        expected: Names of the outputs that the graph must have, in order.
        outputs: What the graph returned, in its own order.
        reference: The values and budgets to judge against.
        by_column: Outputs that are judged column by column as well, if the artifact is in half precision.
    """
    verdicts = []
    for hook in expected:
        if hook not in outputs:
            verdicts.append(_failed(graph, hook, f"the output is missing; there are {', '.join(outputs) or 'none'}"))
        elif difference := _type_difference(outputs[hook], reference.original[hook]):
            verdicts.append(_failed(graph, hook, difference))
        elif hook == HOOK_INPUT:
            verdicts.append(_judge_input(graph, outputs[hook], reference))
        else:
            verdicts.append(_judge_computed(graph, hook, outputs, reference, hook in by_column))
    extra = f"there should be no such output; expected are {', '.join(expected)}"
    verdicts += [_failed(graph, hook, extra) for hook in outputs if hook not in expected]
    present = [hook for hook in outputs if hook in expected]
    if sorted(present) == sorted(expected) and present != list(expected):
        verdicts.append(_failed(graph, "(order)", f"outputs are {', '.join(outputs)}, expected {', '.join(expected)}"))
    return verdicts


def _failed(graph: str, hook: str, reason: str) -> Verdict:
    return Verdict(graph, hook, None, None, (f"{graph}: {hook}: {reason}.",))


def _type_difference(y: Array, original: Array) -> str:
    """Return how shape or dtype differ, or an empty string if both are equal."""
    if y.dtype == original.dtype and y.shape == original.shape:
        return ""
    return f"it is {y.shape} {y.dtype}, the original {original.shape} {original.dtype}"


def _judge_input(graph: str, y: Array, reference: Reference) -> Verdict:
    """Compare the input bit for bit."""
    x = reference.original[HOOK_INPUT]
    bits = f"u{x.itemsize}"
    different = y.view(bits) != x.view(bits)
    if not different.any():
        return Verdict(graph, HOOK_INPUT, None, None)
    index = index_of(int(np.argmax(different)), x.shape)
    reason = f"it is {y[index]:.9g} at {list(index)}, the input {x[index]:.9g}; they must be equal bit for bit"
    return _failed(graph, HOOK_INPUT, reason)


def _judge_computed(graph: str, hook: str, outputs: Hooks, reference: Reference, by_column: bool) -> Verdict:
    """Compare errors with their budgets; for acts_post also the features that are on, for output also the sum."""
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
                f"{graph}: {hook}: {reference.n_flipped} gates near their threshold decide differently from the "
                f"original; rounding explains at most {reference.max_flipped:.0f}."
            )
        differing = int(((reference.truth[hook] != 0) != (reference.original[hook] != 0)).sum())
        note = f"({count(differing, 'decision')} differing from the original)" if differing else ""
    elif reference.diverging_tokens is not None and hook in (HOOK_RECONS, HOOK_ERROR, HOOK_OUTPUT):
        note = f"({count(int(reference.diverging_tokens.sum()), 'token')} judged after the graph's own decisions)"
    if hook == HOOK_OUTPUT:
        failures += _judge_sum(graph, outputs, reference)
    if by_column and reference.judges_columns:
        failures += _judge_columns(graph, hook, y, reference)
    return Verdict(graph, hook, errors, budget, tuple(failures), note)


def _judge_support(graph: str, y: Array, reference: Reference) -> list[str]:
    """Return the features about which the graph decided wrongly."""
    on, pre = reference.truth[HOOK_ACTS_POST] != 0, reference.truth[HOOK_ACTS_PRE]
    wrong = ((y != 0) != on) & ~reference.support_is_free
    if not wrong.any():
        return []
    token, feature = index_of(int(np.argmax(wrong)), wrong.shape)
    return [
        f"{graph}: {HOOK_ACTS_POST}: feature {feature} of token {token} is {'off' if on[token, feature] else 'on'} "
        f"({y[token, feature]:.9g}), and no rounding explains it: the truth of its preactivation is "
        f"{pre[token, feature]:.6g}, and its tolerance {reference.acts_pre_tolerance[token, feature]:.1e}"
        f"{and_more(int(wrong.sum()) - 1)}."
    ]


def _judge_columns(graph: str, hook: str, y: Array, reference: Reference) -> list[str]:
    """Return the columns whose error over the batch is larger than rounding explains."""
    errors, budgets = reference.column_errors(hook, y), reference.column_budgets(hook)
    wrong = np.flatnonzero(~(errors <= budgets))
    if not len(wrong):
        return []
    worst = wrong[np.argmax(errors[wrong] / np.maximum(budgets[wrong], np.finfo(np.float64).tiny))]
    what = "feature" if hook == HOOK_ACTS_PRE else "dimension"
    return [
        f"{graph}: {hook}: over all tokens, the error of {what} {worst} is {errors[worst]:.3e}, its budget "
        f"{budgets[worst]:.3e}{and_more(len(wrong) - 1)}."
    ]


def _judge_sum(graph: str, outputs: Hooks, reference: Reference) -> list[str]:
    """Return a failure unless the output is exactly the rounded sum of reconstruction and error, or recons alone."""
    parts = (HOOK_RECONS, HOOK_ERROR) if reference.use_error_term else (HOOK_RECONS,)
    if any(part not in outputs or _type_difference(outputs[part], outputs[HOOK_OUTPUT]) for part in parts):
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

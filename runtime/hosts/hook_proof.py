"""Judges the hooks of an SAE inside a graph of the host against the SAE's own artifact, by the rules for SAEs."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ..arrays.dtypes import widened
from ..arrays.tensor import Array, feed_of
from ..artifact.budgets import FACTOR
from ..artifact.contracts import ACTIVATE, DECODE
from ..artifact.manifest import Errors
from ..artifact.names import FEATURE_HOOKS, HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_NAMES, HOOK_RECONS, INPUT
from ..parity.decisions import Stage, Stages, follow_graph
from ..parity.judge import judge
from ..parity.reference import Reference
from ..parity.report import Verdict
from ..session.session import SAESession
from .names import at

SEED = 0


class HookProof:
    """The SAE at a hook on some activations, and what a graph of the host may differ from it.

    Args:
        session: Session of the SAE's artifact, which `verify` proves.
        hook: The hook.
        x: Activations at the hook, `(tokens, ...)`.
        target: For a transcoder, the activations that it predicts, `(tokens, d_out)`; without them, those with the
            error term are judged on their features only.
        input_budget: Largest error that the activations themselves may have; 0 if the graph computed these.
    """

    def __init__(
        self, session: SAESession, hook: str, x: Array, target: Array | None = None, input_budget: float = 0.0
    ) -> None:
        self._session = session
        self._hook = hook
        cfg = session.cfg
        self._x = feed_of(widened(x).reshape(len(x), *cfg.input_shape), cfg.dtype)
        self._target = None if target is None or not cfg.takes_target else feed_of(widened(target), cfg.dtype)
        only_features = cfg.takes_target and target is None
        self._names = [HOOK_INPUT, *FEATURE_HOOKS] if only_features else list(session.hook_names)
        hooks = {name: self._rows(array) for name, array in self._compute(self._x).items()}
        # Both are within the recorded budget of the truth, and so within twice that of each other.
        budgets = {name: _times(2.0, record.budget) for name, record in session.artifact.manifest.record.hooks.items()}
        truth = {name: array.astype(np.float64) for name, array in hooks.items() if name != HOOK_NAMES[0]}
        self._reference = Reference(
            hooks, truth, cfg.use_error_term, None if self._target is None else self._rows(self._target), cfg.dtype,
            {name: budgets[name] for name in truth},
            rounded=session.artifact.manifest.parity is None,
        )  # fmt: skip
        if input_budget:
            self._reference = dataclasses.replace(self._reference, recorded=self._widened_budgets(input_budget))

    def judge(self, graph: str, outputs: Mapping[str, Array]) -> list[Verdict]:
        """Return a verdict for each output of a graph of the host that belongs to this hook.

        Args:
            graph: Name of the graph.
            outputs: The tensors by the name of the SAE's hook, a row for each of the activations.
        """
        found = {name: self._rows(array) for name, array in outputs.items()}
        reference = self._reference
        if HOOK_ACTS_POST in found and np.isfinite(found[HOOK_ACTS_POST]).all():
            known = {name: found[name] for name in found if name in (HOOK_ACTS_PRE, HOOK_ACTS_POST, HOOK_RECONS)}
            if all(array.shape == reference.truth[name].shape for name, array in known.items()):
                reference = follow_graph(reference, found, Stages(self._stage(ACTIVATE), self._stage(DECODE)))
        expected = [name for name in self._names if name in found]
        return [self._of_host(graph, verdict) for verdict in judge(graph, expected, found, reference)]

    def _of_host(self, graph: str, verdict: Verdict) -> Verdict:
        """Return a verdict with the names that the tensors have in a graph of the host."""
        name, start = at(self._hook, verdict.hook), f"{graph}: {verdict.hook}: "
        failures = tuple(failure.replace(start, f"{graph}: {name}: ", 1) for failure in verdict.failures)
        return dataclasses.replace(verdict, hook=name, failures=failures)

    def _rows(self, array: object) -> Array:
        rows = widened(np.asarray(array))
        return rows.reshape(len(rows), -1)

    def _widened_budgets(self, input_budget: float) -> dict[str, Errors]:
        """Return the budgets for activations that differ from these by their own budget.

        How far such a difference moves each hook is measured, with a random one of this size.
        """
        size = np.linalg.norm(self._rows(self._x), axis=1).reshape(-1, *(1,) * (self._x.ndim - 1))
        draws = np.random.default_rng(SEED).standard_normal(self._x.shape)
        draws *= input_budget * size / np.linalg.norm(self._rows(draws), axis=1).reshape(size.shape)
        moved = self._compute(feed_of(widened(self._x) + draws, self._session.cfg.dtype))
        budgets = {}
        for name, budget in self._reference.budgets.items():
            change = self._reference.errors(name, self._rows(moved[name]))
            budgets[name] = Errors(budget.token + FACTOR * change.token, budget.element + FACTOR * change.element)
        return budgets

    def _compute(self, x: Array) -> dict[str, Array]:
        return self._session.compute(x, self._names, self._target)

    def _stage(self, graph: str) -> Stage:
        """Return a stage of the artifact as a function of some of the tokens."""
        cfg, name = self._session.cfg, self._session._graphs.variant(graph)
        spec = self._session.artifact.manifest.graphs[name]
        given, wanted = (HOOK_ACTS_PRE, HOOK_ACTS_POST) if graph == ACTIVATE else (HOOK_ACTS_POST, HOOK_RECONS)

        def run(tokens: Array, values: Array) -> Array:
            arrays = {given: values, INPUT: self._x[tokens]}
            feeds = {tensor.name: feed_of(arrays[tensor.name], cfg.dtype) for tensor in spec.inputs}
            return self._rows(self._session.run_graph(name, feeds)[wanted])

        return run


def _times(factor: float, errors: Errors) -> Errors:
    return Errors(factor * errors.token, factor * errors.element)

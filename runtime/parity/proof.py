"""The proof: graphs of an artifact, run on the inputs of a reference and judged against it."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ..arrays.tensor import Array, TensorValue, feed_of
from ..artifact.contracts import ACTIVATE, DECODE, FEATURES, STEER
from ..artifact.manifest import Manifest
from ..artifact.names import (
    FEATURE_SCALE,
    FEATURE_SHIFT,
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_INPUT,
    HOOK_RECONS,
    INDICES,
    INPUT,
    L0,
    TARGET,
    VALUES,
    K,
)
from ..errors import ArtifactError, ProviderError, SAEError
from ..session.features import TopFeatures
from .decisions import Stage, Stages, adopt_decisions, follow_graph, follow_steered_graph
from .judge import judge
from .reference import Hooks, Reference, SteeredReference
from .report import Report, Verdict

PROBE_K = 1
"""Features of a token that are asked for besides, so that they have to be sought."""

Run: TypeAlias = Callable[[str, dict[str, TensorValue], int], Hooks]
"""From a graph's name, its inputs and the number of tokens to its outputs, those of bfloat16 as float32."""


def judge_graphs(
    graphs: Sequence[str], manifest: Manifest, steered: SteeredReference, run: Run, report: Report
) -> None:
    """Run graphs of an artifact on a reference's inputs and add the verdicts, or why there is none, to a report.

    Those that take no intervention are judged against `steered.clean`.

    Raises:
        ProviderError: the device cannot be used.
    """
    proof = _Proof(manifest, steered, run)
    for graph in graphs:
        try:
            report.verdicts.extend(proof.verdicts_on(graph))
        except ProviderError:
            raise
        except SAEError as error:  # of this graph, or of a stage that it is held to
            report.problems.append(f"{graph}: {error}")


class _Proof:
    """The inputs of graphs, and what the outputs of each are judged against."""

    def __init__(self, manifest: Manifest, steered: SteeredReference, run: Run) -> None:
        self.manifest, self.steered, self.run = manifest, steered, run
        clean, sae = steered.clean, manifest.sae
        numbers = {INPUT: steered.original[HOOK_INPUT], **clean.original}
        if steered.target is not None:
            numbers[TARGET] = steered.target
        k = min(sae.d_sae, 2 * _most_on(clean) + 8)  # more than are on, so that nothing may be missing
        self.sources: dict[str, TensorValue] = {
            **{name: feed_of(array, sae.dtype) for name, array in numbers.items()},
            **steered.intervention.feeds((steered.tokens,), sae.dtype),
            K: np.array([k]),
        }

    def verdicts_on(self, graph: str) -> list[Verdict]:
        """Run a graph and judge its outputs."""
        kind, dot, family = graph.partition(".")
        outputs, clean = self.outputs_of(graph), self.steered.clean
        stages = self.stages_of(dot + family)
        if kind == FEATURES:
            return _judge_features(graph, outputs, self.outputs_of(graph, {K: np.array([PROBE_K])}), clean, stages)
        expected = [tensor.name for tensor in self.manifest.graphs[graph].outputs]
        if kind == STEER:
            unedited = self.outputs_of(graph, self.no_edit())
            followed = _followed(unedited, clean, stages)
            wrong = [v for v in judge(f"{graph}, without an edit", expected, unedited, followed) if v.failures]
            steered: Reference = self.steered
            if _comparable(outputs, clean):
                steered = follow_steered_graph(self.steered, followed, outputs[HOOK_ACTS_POST], stages.decode)
            verdicts = judge(graph, expected, outputs, steered)
            return verdicts if any(verdict.failures for verdict in verdicts) else [*verdicts, *wrong]
        if kind == ACTIVATE:
            found = adopt_decisions(clean, outputs[HOOK_ACTS_POST]) if _comparable(outputs, clean) else clean
            return judge(graph, expected, outputs, found)
        return judge(graph, expected, outputs, _followed(outputs, clean, stages))

    def outputs_of(self, graph: str, other: dict[str, TensorValue] | None = None) -> Hooks:
        """Run a graph on all tokens, some of its inputs others than the reference's."""
        sources = {**self.sources, **(other or {})}
        feeds = {tensor.name: sources[tensor.name] for tensor in self.manifest.graphs[graph].inputs}
        return self.run(graph, feeds, self.steered.tokens)

    def no_edit(self) -> dict[str, TensorValue]:
        """Return strengths of the edits at which nothing is edited, in one row for all tokens."""
        m = len(self.steered.intervention.ids)
        return {
            name: feed_of(np.full((1, m), value, np.float32), self.manifest.sae.dtype)
            for name, value in ((FEATURE_SCALE, 1.0), (FEATURE_SHIFT, 0.0))
        }

    def stages_of(self, family: str) -> Stages:
        """Return the stages of a family of graphs, such as ".sparse", or of the portable ones: their own or these."""
        graphs = self.manifest.graphs
        activate, decode = (f"{name}{family}" if f"{name}{family}" in graphs else name for name in (ACTIVATE, DECODE))
        return Stages(
            self.stage(activate, HOOK_ACTS_PRE, HOOK_ACTS_POST), self.stage(decode, HOOK_ACTS_POST, HOOK_RECONS)
        )

    def stage(self, graph: str, given: str, wanted: str) -> Stage:
        """Return a graph as a function of some of the tokens."""

        def stage(tokens: Array, values: Array) -> Array:
            numbers = {given: values, INPUT: np.asarray(self.sources[INPUT])[tokens]}
            feeds: dict[str, TensorValue] = {
                tensor.name: feed_of(numbers[tensor.name], self.manifest.sae.dtype)
                for tensor in self.manifest.graphs[graph].inputs
            }
            outputs = self.run(graph, feeds, len(values))
            shape = (len(values), *self.steered.original[wanted].shape[1:])
            if wanted not in outputs or outputs[wanted].shape != shape:
                found = {name: y.shape for name, y in outputs.items()}
                raise ArtifactError(f"{graph} has to give {wanted} {shape} and gave {found}.")
            if not np.isfinite(outputs[wanted]).all():
                raise ArtifactError(f"{graph} gave a {wanted} that is not finite.")
            return outputs[wanted]

        return stage


def _comparable(outputs: Hooks, reference: Reference) -> bool:
    """Tell whether the activations, and the preactivations if they are there, are such that they can be followed."""
    given = [hook for hook in (HOOK_ACTS_PRE, HOOK_ACTS_POST) if hook in outputs]
    return HOOK_ACTS_POST in given and all(
        outputs[hook].shape == reference.truth[hook].shape and np.isfinite(outputs[hook]).all() for hook in given
    )


def _followed(outputs: Hooks, reference: Reference, stages: Stages) -> Reference:
    """Return the reference after a graph's decisions, if it makes any that can be followed."""
    return follow_graph(reference, outputs, stages) if _comparable(outputs, reference) else reference


def _most_on(reference: Reference) -> int:
    return int((reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max(initial=0))


def _judge_features(graph: str, outputs: Hooks, fewer: Hooks, clean: Reference, stages: Stages) -> list[Verdict]:
    """Judge the strongest features as the activations that they stand for, and their number and order besides.

    Of fewer, they must be the first of them: where all are found, the strongest need not be sought.
    """
    forms = [
        (name, fewer[name].shape, (*outputs[name].shape[:1], *((PROBE_K,) if name != L0 else ()))) for name in outputs
    ]
    if wrong_forms := [form for form in forms if form[1] != form[2]]:
        return [
            Verdict(graph, name, None, None, (f"{graph}: {name} is {found} for k = {PROBE_K}, not {expected}.",))
            for name, found, expected in wrong_forms
        ]
    found = TopFeatures(outputs[INDICES], outputs[VALUES], outputs[L0])
    d_sae = clean.original[HOOK_ACTS_POST].shape[1]
    try:
        dense = {HOOK_ACTS_POST: found.dense(d_sae)}
    except IndexError as error:
        return [Verdict(graph, INDICES, None, None, (f"{graph}: {INDICES}: {error}",))]
    verdicts = judge(graph, [HOOK_ACTS_POST], dense, _followed(dense, clean, stages))
    strength = np.abs(found.values)
    first = np.arange(PROBE_K) < np.minimum(found.l0, PROBE_K)[:, None]
    named = np.take_along_axis(dense[HOOK_ACTS_POST], np.clip(fewer[INDICES], 0, d_sae - 1), axis=1)
    same = ((fewer[VALUES] == outputs[VALUES][:, :PROBE_K]) & ((fewer[VALUES] == named) | ~first)).all(axis=1)
    places = np.sort(np.where(found.values != 0, found.indices, -1 - np.arange(strength.shape[1])), axis=1)
    for name, right, why in (
        (INDICES, (places[:, 1:] != places[:, :-1]).all(axis=1), "name a feature twice"),
        (L0, found.l0 == (dense[HOOK_ACTS_POST] != 0).sum(axis=1), "is not the number of features that are on"),
        (VALUES, (strength[:, :-1] >= strength[:, 1:]).all(axis=1), "are not in descending order"),
        (K, same & (fewer[L0] == outputs[L0]), f"= {PROBE_K} does not give the strongest, or another {L0}"),
    ):
        wrong = np.flatnonzero(~right)
        failures = (f"{graph}: {name} {why}: token {wrong[0]} and {len(wrong) - 1} more.",) if len(wrong) else ()
        if failures or name not in (INDICES, K):
            verdicts.append(Verdict(graph, name, None, None, failures))
    return verdicts

"""Runs the graphs of an artifact on the inputs of a reference and judges their outputs."""

from collections.abc import Callable, Mapping, Sequence
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
from ..devices.cuda.search import FEATURES_PER_K
from ..errors import ArtifactError, InputError, ProviderError, SAEError
from ..session.features import TopFeatures
from .decisions import Stage, Stages, adopt_decisions, follow_graph, follow_steered_graph
from .judge import judge
from .reference import Hooks, Reference, SteeredReference
from .report import Report, Verdict, and_more

Run: TypeAlias = Callable[[str, dict[str, TensorValue], int], Hooks]
"""Runs a graph: `run(name, inputs, tokens)` returns its outputs, those of bfloat16 in float32 arrays."""


def judge_graphs(
    graphs: Sequence[str], manifest: Manifest, steered: SteeredReference, run: Run, report: Report
) -> None:
    """Run graphs of an artifact and add their verdicts to a report, or the reason why a graph has none.

    Args:
        graphs: Names of the graphs to judge.
        manifest: The manifest of the artifact.
        steered: Reference for the graphs that take an intervention; `steered.clean` is the one for all other graphs.
        run: A function that runs a graph.
        report: The report, which is changed.

    Raises:
        ProviderError: The device cannot be used.
    """
    proof = _GraphProof(manifest, steered, run)
    for graph in graphs:
        try:
            report.verdicts.extend(proof.judge_graph(graph))
        except ProviderError:
            raise
        except SAEError as error:  # of this graph, or of a stage that it is compared with
            report.problems.append(f"{graph}: {error}")


class _GraphProof:
    """Runs the graphs of one artifact on one reference and judges each of them.

    Attributes:
        sources: Every tensor that is an input of a graph, by name, for all tokens of the reference.
    """

    def __init__(self, manifest: Manifest, steered: SteeredReference, run: Run) -> None:
        self.manifest, self.steered, self.run = manifest, steered, run
        clean, sae = steered.clean, manifest.sae
        arrays = {INPUT: steered.original[HOOK_INPUT], **clean.original}
        if steered.target is not None:
            arrays[TARGET] = steered.target
        k = min(sae.d_sae, 2 * _max_l0(clean) + 8)  # above L0, so that every feature that is on must be returned
        self.sources: dict[str, TensorValue] = {
            **{name: feed_of(array, sae.dtype) for name, array in arrays.items()},
            **steered.intervention.feeds((steered.tokens,), sae.dtype),
            K: np.array([k]),
        }

    def judge_graph(self, graph: str) -> list[Verdict]:
        """Run a graph and return a verdict for each of its outputs."""
        kind, dot, family = graph.partition(".")
        outputs, clean = self.run_graph(graph), self.steered.clean
        stages = self.stages_for(dot + family)
        if kind == FEATURES:
            ks = _probe_ks(_max_l0(clean), self.manifest.sae.d_sae)
            fewer = {k: self.run_graph(graph, {K: np.array([k])}) for k in ks}
            return _judge_features(graph, {int(np.asarray(self.sources[K])[0]): outputs, **fewer}, clean, stages)
        expected = [tensor.name for tensor in self.manifest.graphs[graph].outputs]
        if kind == STEER:
            return self._judge_steer(graph, expected, outputs, stages)
        if kind == ACTIVATE:
            adopted = adopt_decisions(clean, outputs[HOOK_ACTS_POST]) if _can_follow(outputs, clean) else clean
            return judge(graph, expected, outputs, adopted)
        # Only what is computed from the same values as in the original rounds like it: `decode` is given its acts_post.
        by_column = [HOOK_RECONS if kind == DECODE else HOOK_ACTS_PRE]
        return judge(graph, expected, outputs, _follow(outputs, clean, stages), by_column)

    def _judge_steer(self, graph: str, expected: list[str], outputs: Hooks, stages: Stages) -> list[Verdict]:
        """Judge a graph with the intervention, and without an edit, which shows what it decides before editing."""
        clean = self.steered.clean
        unedited = self.run_graph(graph, self.identity_edit())
        followed = _follow(unedited, clean, stages)
        verdicts = judge(f"{graph}, without an edit", expected, unedited, followed, [HOOK_ACTS_PRE])
        wrong = [verdict for verdict in verdicts if verdict.failures]
        steered: Reference = self.steered
        if _can_follow(outputs, clean):
            steered = follow_steered_graph(self.steered, followed, outputs[HOOK_ACTS_POST], stages.decode)
        verdicts = judge(graph, expected, outputs, steered)
        return verdicts if any(verdict.failures for verdict in verdicts) else [*verdicts, *wrong]

    def run_graph(self, graph: str, replaced: dict[str, TensorValue] | None = None) -> Hooks:
        """Run a graph on all tokens, with some of its inputs replaced."""
        sources = {**self.sources, **(replaced or {})}
        feeds = {tensor.name: sources[tensor.name] for tensor in self.manifest.graphs[graph].inputs}
        return self.run(graph, feeds, self.steered.tokens)

    def identity_edit(self) -> dict[str, TensorValue]:
        """Return a scale of 1 and a shift of 0 for every edited feature, in one row for all tokens."""
        m = len(self.steered.intervention.ids)
        return {
            name: feed_of(np.full((1, m), value, np.float32), self.manifest.sae.dtype)
            for name, value in ((FEATURE_SCALE, 1.0), (FEATURE_SHIFT, 0.0))
        }

    def stages_for(self, family: str) -> Stages:
        """Return the stages that graphs of a family, such as ".sparse", are compared with.

        They are those of the same family, or the portable ones where the family has none.
        """
        graphs = self.manifest.graphs
        activate, decode = (f"{name}{family}" if f"{name}{family}" in graphs else name for name in (ACTIVATE, DECODE))
        return Stages(
            self.as_stage(activate, HOOK_ACTS_PRE, HOOK_ACTS_POST), self.as_stage(decode, HOOK_ACTS_POST, HOOK_RECONS)
        )

    def as_stage(self, graph: str, given: str, wanted: str) -> Stage:
        """Return a graph as a function from the hook `given` to the hook `wanted`, on some of the tokens.

        The function raises an ArtifactError if the graph returns another shape, or values that are not finite.
        """

        def run_stage(tokens: Array, values: Array) -> Array:
            arrays = {given: values, INPUT: np.asarray(self.sources[INPUT])[tokens]}
            feeds: dict[str, TensorValue] = {
                tensor.name: feed_of(arrays[tensor.name], self.manifest.sae.dtype)
                for tensor in self.manifest.graphs[graph].inputs
            }
            outputs = self.run(graph, feeds, len(values))
            shape = (len(values), *self.steered.original[wanted].shape[1:])
            if wanted not in outputs or outputs[wanted].shape != shape:
                found = {name: y.shape for name, y in outputs.items()}
                raise ArtifactError(f"{graph} must return {wanted} of shape {shape}, and returned {found}.")
            if not np.isfinite(outputs[wanted]).all():
                raise ArtifactError(f"{graph} gave a {wanted} that is not finite.")
            return outputs[wanted]

        return run_stage


def _can_follow(outputs: Hooks, reference: Reference) -> bool:
    """Tell whether the activations, and the preactivations if there are any, have the right shape and are finite."""
    given = [hook for hook in (HOOK_ACTS_PRE, HOOK_ACTS_POST) if hook in outputs]
    return HOOK_ACTS_POST in given and all(
        outputs[hook].shape == reference.truth[hook].shape and np.isfinite(outputs[hook]).all() for hook in given
    )


def _follow(outputs: Hooks, reference: Reference, stages: Stages) -> Reference:
    """Return the reference with the graph's correct decisions, or as it is if the outputs cannot be followed."""
    return follow_graph(reference, outputs, stages) if _can_follow(outputs, reference) else reference


def _max_l0(reference: Reference) -> int:
    return int((reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max(initial=0))


def _probe_ks(max_l0: int, d_sae: int) -> list[int]:
    """Return other `k` with which `features` is run. With `k` above L0, it need not search for the largest features.

    They are 1, half of the most features that are on, and no more of them than a GPU searches for with a graph of its
    own (`runtime/devices/cuda/search.py`).
    """
    half = max_l0 // 2
    return sorted({1, half, min(half, d_sae // FEATURES_PER_K)} - {0})


def _judge_features(graph: str, by_k: Mapping[int, Hooks], clean: Reference, stages: Stages) -> list[Verdict]:
    """Judge the largest features of each token, as a dense acts_post, and their count and order exactly.

    Args:
        graph: Name of the graph, for the messages.
        by_k: Its outputs by `k`. The largest `k` is above L0, and what others give must be the first of what it gives.
        clean: The reference without an intervention.
        stages: The stages of the same artifact.
    """
    tokens, d_sae = clean.original[HOOK_ACTS_POST].shape
    if wrong_shapes := [
        Verdict(graph, name, None, None, (f"{graph}: {name} is {found.shape} for k = {k}, not {expected}.",))
        for k, outputs in by_k.items()
        for name, found in outputs.items()
        if found.shape != (expected := (tokens, *((k,) if name != L0 else ())))
    ]:
        return wrong_shapes
    most = max(by_k)
    outputs = by_k[most]
    top = TopFeatures(outputs[INDICES], outputs[VALUES], outputs[L0])
    try:
        dense = {HOOK_ACTS_POST: top.dense(d_sae)}
    except InputError as error:
        return [Verdict(graph, INDICES, None, None, (f"{graph}: {INDICES}: {error}",))]
    verdicts = judge(graph, [HOOK_ACTS_POST], dense, _follow(dense, clean, stages))
    size = np.abs(top.values)
    unused = ((top.indices == -1) == (top.values == 0)).all(axis=1)
    for name, correct, what in (
        (INDICES, _are_distinct(outputs), "indices name a feature twice for token {}"),
        (INDICES, unused, "indices are not -1 exactly where values are 0 for token {}"),
        (L0, top.l0 == (dense[HOOK_ACTS_POST] != 0).sum(axis=1), "l0 is not the number of features on for token {}"),
        (VALUES, (size[:, :-1] >= size[:, 1:]).all(axis=1), "values are not in descending order for token {}"),
        *(
            (
                K,
                _are_first(fewer, outputs, dense[HOOK_ACTS_POST]),
                f"with k = {k}, token {{}} gets other features or another l0 than with k = {most}",
            )
            for k, fewer in by_k.items()
            if k != most
        ),
    ):
        wrong = np.flatnonzero(~correct)
        failures = (f"{graph}: {what.format(wrong[0])}{and_more(len(wrong) - 1)}.",) if len(wrong) else ()
        if failures or name not in (INDICES, K):
            verdicts.append(Verdict(graph, name, None, None, failures))
    return verdicts


def _are_distinct(outputs: Hooks) -> Array:
    """Tell for each token whether `features` names no feature twice."""
    values = outputs[VALUES]
    # A negative number for each place without a feature makes the places distinct.
    places = np.sort(np.where(values != 0, outputs[INDICES], -1 - np.arange(values.shape[1])), axis=1)
    distinct: Array = (places[:, 1:] != places[:, :-1]).all(axis=1)
    return distinct


def _are_first(fewer: Hooks, outputs: Hooks, dense: Array) -> Array:
    """Tell for each token whether outputs with a smaller `k` are the first of others, but for the order of equal sizes.

    Args:
        fewer: The outputs with the smaller `k`.
        outputs: The outputs with the larger one.
        dense: The activations that these amount to.
    """
    values, indices = fewer[VALUES], fewer[INDICES]
    is_off = values == 0
    named = np.take_along_axis(dense, np.clip(indices, 0, dense.shape[1] - 1), axis=1)
    same_size = np.abs(values) == np.abs(outputs[VALUES][:, : values.shape[1]])
    right = same_size & ((indices == -1) == is_off) & ((values == named) | is_off)
    first: Array = right.all(axis=1) & _are_distinct(fewer) & (fewer[L0] == outputs[L0])
    return first

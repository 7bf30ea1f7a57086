"""The proof of an artifact that is about to appear: its graphs against the original, recorded in its manifest."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays.dtypes import FLOAT32, widened
from runtime.arrays.tensor import TensorValue, feed_of
from runtime.artifact.contracts import ACTIVATE, CONTRACTS, CPU_VARIANTS, DECODE, MODEL, PORTABLE, SPARSE, STEER
from runtime.artifact.folder import hash_file
from runtime.artifact.manifest import CUSTOM, MANIFEST, Features, Fidelity, HookParity, Manifest, ParityRecord
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_RECONS, INPUT, TARGET
from runtime.errors import ExportError
from runtime.parity.decisions import adopt_decisions, follow_graph
from runtime.parity.fidelity import MOST_LOST, explained_variance, features_of, fidelity_of, without_budgets
from runtime.parity.judge import judge
from runtime.parity.proof import judge_graphs
from runtime.parity.reference import Hooks, Reference, SteeredReference
from runtime.parity.report import Report
from runtime.parity.verify import judge_session
from runtime.parity.verify import verify as verify_golden
from runtime.session.session import SAESession

from ..checkpoints.registry import load
from ..original.exportable import architecture_of
from ..original.running import all_hooks
from .decisions import stages_of
from .evaluator import evaluated

EVALUATED_TOKENS = 8
"""On how many tokens the slow evaluator runs."""

_PLACEHOLDER = Features(0.0, 0.0, 0.0, 0.0)


def prove(
    folder: Path,
    path: Path,
    manifest: Manifest,
    steered: SteeredReference,
    in_tf32: SteeredReference | None,
    exact: Reference | None,
) -> None:
    """Run the graphs against the original, record the result in the manifest, then read it all as a user would.

    Args:
        folder: with everything but the manifest.
        path: what it will be called.
        manifest: without the proof.
        steered: the original in the artifact's dtype.
        in_tf32: the same for GPUs with that arithmetic, if the dtype is float32.
        exact: the original in float32, if the artifact is in half precision and was not from the start.
    """
    record = ParityRecord("cpu", steered.tokens, steered.clean.left_out, {}, {}, {}, {})
    if in_tf32 is not None:
        record.tf32.update(in_tf32.clean.budgets)
        record.tf32_steered.update(in_tf32.budgets)
    _write_manifest(folder, manifest, parity=record)
    with SAESession(folder, record.device) as session:
        report = judge_session(session, steered)
        fidelity = None if exact is None else _fidelity(session, exact)
    if manifest.sae.dtype != FLOAT32:
        _judge_portable(folder, manifest, steered, report)
    Report(f"{path} was not written: parity is not met", report.verdicts, report.problems).raise_for_failures()
    measured = {(verdict.graph, verdict.hook): verdict.errors for verdict in report.verdicts}
    model, steer = (_run_at_export(graph, manifest) for graph in (MODEL, STEER))
    for graph, reference, hooks in ((model, steered.clean, record.hooks), (steer, steered, record.steered)):
        for hook, budget in reference.budgets.items():
            artifact = measured[graph, hook]
            assert artifact is not None, hook  # a computed hook without a failure has been measured
            hooks[hook] = HookParity(reference.errors(hook, reference.original[hook]), artifact, budget)
    _write_manifest(folder, manifest, parity=record, fidelity=fidelity)
    verify_golden(folder, record.device).raise_for_failures()


def _judge_portable(folder: Path, manifest: Manifest, steered: SteeredReference, report: Report) -> None:
    """Judge the graphs that a CPU does not compute, on few tokens, by the evaluator of the ONNX package."""
    tokens = np.unique(np.linspace(0, steered.tokens - 1, EVALUATED_TOKENS, dtype=np.int64))
    clean = dataclasses.replace(steered.clean.subset(tokens), recorded=steered.clean.budgets)
    few = dataclasses.replace(steered.subset(tokens), recorded=steered.budgets, clean=clean)

    def run(graph: str, feeds: dict[str, TensorValue], tokens: int) -> Hooks:
        return evaluated(folder / manifest.graphs[graph].file, feeds)

    judge_graphs(list(PORTABLE), manifest, few, run, report)


def _run_at_export(graph: str, manifest: Manifest) -> str:
    """Return the graph that the proof of a portable one is made on: in half precision its twin for the CPU."""
    return graph if manifest.sae.dtype == FLOAT32 else CPU_VARIANTS[manifest.sae.dtype][graph]


def _fidelity(session: SAESession, exact: Reference) -> Fidelity:
    """Measure what an artifact in half precision loses against the float32 original."""
    dtype = session.cfg.dtype
    given = {INPUT: exact.original[HOOK_INPUT], **({} if exact.target is None else {TARGET: exact.target})}
    feeds = {name: feed_of(array, dtype) for name, array in given.items()}
    outputs = session.run_graph(CPU_VARIANTS[dtype][MODEL], feeds)
    hooks = {name: widened(np.asarray(output)) for name, output in outputs.items()}
    certain = dataclasses.replace(exact, alternative_acts=None)  # a feature that decides otherwise is a loss here
    errors = {hook: fidelity_of(exact.own_errors(hook), [certain.errors(hook, hooks[hook])]) for hook in exact.truth}
    return _with_statistics(
        Fidelity("cpu", exact.tokens, exact.left_out, errors, {}, _PLACEHOLDER, 0.0, 0.0), exact, hooks
    )


def _with_statistics(record: Fidelity, original: Reference, hooks: Hooks) -> Fidelity:
    """Return the record with what the artifact's hooks say of features and of the variance explained."""
    return dataclasses.replace(
        record,
        features=features_of(original.original[HOOK_ACTS_POST], hooks[HOOK_ACTS_POST]),
        explained_original=explained_variance(original.original, original.target),
        explained=explained_variance({**hooks, HOOK_INPUT: original.original[HOOK_INPUT]}, original.target),
    )


def record_fidelity(folder: Path, path: Path, manifest: Manifest, steered: SteeredReference) -> None:
    """Measure what the rounded weights lose, record it in the manifest, then read it all as a user would."""
    record = Fidelity("cpu", steered.tokens, steered.clean.left_out, {}, {}, _PLACEHOLDER, 0.0, 0.0)
    _write_manifest(folder, manifest, fidelity=record)
    clean = steered.clean
    with SAESession(folder, record.device) as session:
        report = judge_session(session, without_budgets(steered))
        target = {} if clean.target is None else {TARGET: clean.target}
        outputs = session.run_graph(SPARSE[MODEL], {INPUT: clean.original[HOOK_INPUT], **target})
    Report(f"{path} was not written: it is not sound", report.verdicts, report.problems).raise_for_failures()
    for graphs, reference, measured in (
        ([name for name in CONTRACTS if STEER not in name], clean, record.hooks),
        ([STEER, SPARSE[STEER]], steered, record.steered),
    ):
        for hook in reference.truth:
            errors = [v.errors for v in report.verdicts if v.graph in graphs and v.hook == hook and v.errors]
            measured[hook] = fidelity_of(reference.own_errors(hook), errors)
    # Each stage by itself: that features flip at a threshold, and move what is behind, is no fault of a graph. A gate,
    # for which `activate` reads the input, makes them flip in that stage.
    stages = [DECODE, SPARSE[DECODE], *([ACTIVATE] if len(manifest.graphs[ACTIVATE].inputs) == 1 else [])]
    for verdict in report.verdicts:
        of_a_stage = verdict.hook == HOOK_ACTS_PRE or verdict.graph in stages
        if of_a_stage and verdict.errors and (lost := verdict.errors.token) > MOST_LOST:
            raise ExportError(
                f"{path} was not written: with int8 weights {verdict.hook} of {verdict.graph} is off by {lost:.1%} on "
                f"some token; over {MOST_LOST:.0%} cannot be called the same SAE. Its weights differ too much in size: "
                "use float32."
            )
    record = _with_statistics(record, clean, {name: widened(np.asarray(output)) for name, output in outputs.items()})
    _write_manifest(folder, manifest, fidelity=record)
    verify_golden(folder, record.device).raise_for_failures()


def prove_checkpoint(sae: Any, folder: Path, reference: Reference) -> None:
    """Make sure that the artifact is its own checkpoint: what is loaded from it computes what was exported."""
    if architecture_of(sae).startswith(CUSTOM):
        return  # only its owner's code can make it again
    loaded = load(folder)
    outputs = all_hooks(loaded, reference.original[HOOK_INPUT], reference.target)
    stages, all_tokens = stages_of(loaded, reference), np.ones(reference.tokens, bool)
    alone = {
        HOOK_ACTS_POST: stages.activate(all_tokens, reference.original[HOOK_ACTS_PRE]),
        HOOK_RECONS: stages.decode(all_tokens, reference.original[HOOK_ACTS_POST]),
    }
    verdicts = [
        *judge("checkpoint", list(alone), alone, adopt_decisions(reference, alone[HOOK_ACTS_POST])),
        *judge("checkpoint", list(reference.original), outputs, follow_graph(reference, outputs, stages)),
    ]
    if failures := Report("", verdicts).failures:
        raise ExportError(
            f"This {type(sae).__name__} computes something else than what its artifact would be loaded as: "
            f"{failures[0]} Its config and weights must be all that it is; else make it a class of its own."
        )


def _write_manifest(
    folder: Path, manifest: Manifest, *, parity: ParityRecord | None = None, fidelity: Fidelity | None = None
) -> None:
    names = sorted([manifest.weights, manifest.golden.file, *(graph.file for graph in manifest.graphs.values())])
    files = {name: hash_file(folder / name) for name in names}
    text = dataclasses.replace(manifest, parity=parity, fidelity=fidelity, files=files).to_json()
    (folder / MANIFEST).write_text(text, "utf-8")

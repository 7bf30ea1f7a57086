"""Proves a new artifact before it is put in its place, and records the proof in its manifest."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays.dtypes import FLOAT32, widened
from runtime.arrays.tensor import TensorValue, feed_of
from runtime.artifact.budgets import MOST_LOST
from runtime.artifact.checks import check_manifest
from runtime.artifact.contracts import (
    ACTIVATE,
    CONTRACTS,
    CPU_VARIANTS,
    DECODE,
    MODEL,
    PORTABLE,
    SPARSE,
    STEER,
    contracts_of,
)
from runtime.artifact.files import hash_file
from runtime.artifact.labels import LABELS
from runtime.artifact.manifest import (
    CUSTOM,
    MANIFEST,
    Errors,
    Features,
    Fidelity,
    FileRecord,
    HookBudget,
    HookParity,
    Manifest,
    ParityRecord,
)
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_RECONS, INPUT, TARGET
from runtime.errors import ExportError, ManifestError
from runtime.parity.decisions import adopt_decisions, follow_graph
from runtime.parity.fidelity import explained_variance, features_of, fidelity_of, without_budgets
from runtime.parity.golden import load_golden
from runtime.parity.judge import judge
from runtime.parity.proof import judge_graphs
from runtime.parity.reference import Hooks, Reference, SteeredReference
from runtime.parity.report import Report
from runtime.parity.running import SessionRunner, run_in_calls
from runtime.parity.verify import judge_session, read_intact, skipped_graphs
from runtime.parity.verify import verify as verify_golden
from runtime.session.session import SAESession

from ..checkpoints.registry import load
from ..original.exportable import architecture_of
from ..original.running import all_hooks
from .decisions import stages_of
from .evaluator import HalfGraphs

FEW_ACTIVATIONS = 16
"""Number of activations that are not zero below which PyTorch's error on them, which sets the budget, is a matter of
chance."""

_PLACEHOLDER = Features(0.0, 0.0, 0.0, 0.0)
_NO_ERROR = Errors(0.0, 0.0)


def prove(
    folder: Path,
    path: Path,
    manifest: Manifest,
    steered: SteeredReference,
    in_tf32: SteeredReference | None,
    exact: Reference | None,
) -> None:
    """Judge the graphs against the original, write the manifest with the result, and verify the folder as a user would.

    Args:
        folder: Folder with all files except the manifest.
        path: Final path of the folder, for error messages.
        manifest: Manifest without the parity record.
        steered: Reference in the artifact's dtype.
        in_tf32: Reference of the original in TF32 arithmetic, if the dtype is float32.
        exact: Reference of the float32 original, if the artifact was converted to half precision.

    Raises:
        ExportError: The record of the proof is not valid, such as one whose budgets prove nothing.
        ParityError: A graph does not compute what the original computes.
    """
    record = ParityRecord(
        "cpu", steered.tokens, steered.clean.left_out, _unmeasured(steered.clean), _unmeasured(steered),
        *({} if reference is None else _budgets(reference)
          for reference in (None if in_tf32 is None else in_tf32.clean, in_tf32)),
    )  # fmt: skip
    files = _write_manifest(folder, path, manifest, parity=record)
    with SAESession(folder, record.device, shared_stages=False) as session:
        report, golden = _judge(session, [steered, load_golden(session.artifact)])
        fidelity = None if exact is None else _fidelity(session, exact)
    if manifest.sae.dtype != FLOAT32:
        _judge_portable(folder, manifest, steered, report)
    on = np.count_nonzero(steered.clean.original[HOOK_ACTS_POST])
    advice = (
        f". Only {on} activations are not zero on these tokens, too few to tell PyTorch's error by: pass activations "
        "on which the features are on more often"
    )
    title = f"{path} was not written: parity is not met{advice if on < FEW_ACTIVATIONS else ''}"
    Report(title, report.verdicts, report.problems).raise_for_failures()
    measured = {(verdict.graph, verdict.hook): verdict.errors for verdict in report.verdicts}
    model, steer = (_run_at_export(graph, manifest) for graph in (MODEL, STEER))
    for graph, reference, hooks in ((model, steered.clean, record.hooks), (steer, steered, record.steered)):
        for hook in reference.truth:
            artifact = measured[graph, hook]
            assert artifact is not None, hook  # every hook without a failure has been measured
            hooks[hook] = dataclasses.replace(hooks[hook], artifact=artifact)
    _write_manifest(folder, path, manifest, parity=record, fidelity=fidelity, files=files)
    golden.raise_for_failures()
    if isinstance(intact := read_intact(folder), Report):
        intact.raise_for_failures()


def _judge(session: SAESession, references: Sequence[SteeredReference]) -> list[Report]:
    """Return a report of the session's graphs for each reference. Each graph is loaded once for all of them."""
    manifest, run = session.artifact.manifest, SessionRunner(session)
    skipped = skipped_graphs(manifest, session.device)
    reports = [Report(f"{session.artifact.path} on {session.device}") for _ in references]
    for graph in contracts_of(manifest.sae.dtype):
        for reference, report in zip(references, reports, strict=True):
            if graph not in skipped:
                judge_graphs([graph], manifest, reference, run, report)
    return reports


def _unmeasured(reference: Reference) -> dict[str, HookParity]:
    """Return the record of each hook before the artifact has run: with budgets, and no errors of the artifact."""
    return {hook: HookParity(record.original, _NO_ERROR, record.budget) for hook, record in _budgets(reference).items()}


def _budgets(reference: Reference) -> dict[str, HookBudget]:
    """Return the errors of the original and the budget at each hook."""
    return {
        hook: HookBudget(reference.errors(hook, reference.original[hook]), budget)
        for hook, budget in reference.budgets.items()
    }


def _judge_portable(folder: Path, manifest: Manifest, steered: SteeredReference, report: Report) -> None:
    """Judge the graphs in half precision that no CPU provider computes."""
    graphs = HalfGraphs()

    def run(graph: str, feeds: dict[str, TensorValue], tokens: int) -> Hooks:
        spec = manifest.graphs[graph]
        return run_in_calls(functools.partial(graphs.run, graph, folder / spec.file), spec, feeds, tokens)

    judge_graphs(list(PORTABLE), manifest, steered, run, report)


def _run_at_export(graph: str, manifest: Manifest) -> str:
    """Return the graph that is run to prove a portable graph: in half precision its CPU variant."""
    return graph if manifest.sae.dtype == FLOAT32 else CPU_VARIANTS[manifest.sae.dtype][graph]


def _fidelity(session: SAESession, exact: Reference) -> Fidelity:
    """Return what an artifact in half precision loses against the float32 original."""
    dtype = session.cfg.dtype
    given = {INPUT: exact.original[HOOK_INPUT], **({} if exact.target is None else {TARGET: exact.target})}
    feeds = {name: feed_of(array, dtype) for name, array in given.items()}
    outputs = session.run_graph(CPU_VARIANTS[dtype][MODEL], feeds)
    hooks = {name: widened(np.asarray(output)) for name, output in outputs.items()}
    errors = {hook: fidelity_of(exact.own_errors(hook), [exact.errors(hook, hooks[hook])]) for hook in exact.truth}
    return _with_statistics(
        Fidelity("cpu", exact.tokens, exact.left_out, errors, {}, _PLACEHOLDER, 0.0, 0.0), exact, hooks
    )


def _with_statistics(record: Fidelity, original: Reference, hooks: Hooks) -> Fidelity:
    """Return the record with the statistics of the artifact's hooks: features and explained variance."""
    return dataclasses.replace(
        record,
        features=features_of(original.original[HOOK_ACTS_POST], hooks[HOOK_ACTS_POST]),
        explained_original=explained_variance(original.original, original.target),
        explained=explained_variance({**hooks, HOOK_INPUT: original.original[HOOK_INPUT]}, original.target),
    )


def record_fidelity(folder: Path, path: Path, manifest: Manifest, steered: SteeredReference) -> None:
    """Measure what int8 weights lose, write the manifest with the result, and verify the folder as a user would.

    Raises:
        ExportError: The weights lose too much.
        ParityError: The graphs differ from each other or from the golden batch.
    """
    clean = steered.clean
    hooks, edited = (
        {hook: fidelity_of(reference.own_errors(hook), [_NO_ERROR]) for hook in reference.truth}
        for reference in (clean, steered)
    )
    record = Fidelity("cpu", steered.tokens, clean.left_out, hooks, edited, _PLACEHOLDER, 0.0, 0.0)
    _write_manifest(folder, path, manifest, fidelity=record)
    with SAESession(folder, record.device, shared_stages=False) as session:
        report = judge_session(session, without_budgets(steered))
        target = {} if clean.target is None else {TARGET: clean.target}
        outputs = session.run_graph(SPARSE[MODEL], {INPUT: clean.original[HOOK_INPUT], **target})
    Report(f"{path} was not written: verification failed", report.verdicts, report.problems).raise_for_failures()
    for graphs, reference, measured in (
        ([name for name in CONTRACTS if STEER not in name], clean, record.hooks),
        ([STEER, SPARSE[STEER]], steered, record.steered),
    ):
        for hook in reference.truth:
            errors = [v.errors for v in report.verdicts if v.graph in graphs and v.hook == hook and v.errors]
            measured[hook] = fidelity_of(reference.own_errors(hook), errors)
    # Only single stages are bounded: features that flip at a threshold change the later hooks, which is not the fault
    # of a graph. A gate, for which `activate` reads the input, flips features within that stage.
    stages = [DECODE, SPARSE[DECODE], *([ACTIVATE] if len(manifest.graphs[ACTIVATE].inputs) == 1 else [])]
    for verdict in report.verdicts:
        of_a_stage = verdict.hook == HOOK_ACTS_PRE or verdict.graph in stages
        if of_a_stage and verdict.errors and (lost := verdict.errors.token) > MOST_LOST:
            raise ExportError(
                f"{path} was not written: with int8 weights {verdict.hook} of {verdict.graph} is off by {lost:.1%} on "
                f"some token; at most {MOST_LOST:.0%} is allowed. The weights of this SAE differ too much in size for "
                "int8: use float32."
            )
    record = _with_statistics(record, clean, {name: widened(np.asarray(output)) for name, output in outputs.items()})
    _write_manifest(folder, path, manifest, fidelity=record)
    verify_golden(folder, record.device).raise_for_failures()


def prove_checkpoint(sae: Any, folder: Path, reference: Reference) -> None:
    """Check that the SAE that is loaded from the artifact computes what the exported SAE computes.

    Raises:
        ExportError: It computes something else.
    """
    if architecture_of(sae).startswith(CUSTOM):
        return  # a custom class cannot be loaded
    loaded = load(folder)
    outputs = all_hooks(loaded, reference.original[HOOK_INPUT], reference.target)
    if all(np.array_equal(outputs[hook], y) for hook, y in reference.original.items()):
        return  # not a bit differs, so that the stages do not differ either
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
            f"This {type(sae).__name__} computes something else than the SAE that is loaded from its artifact: "
            f"{failures[0]} Its config and weights must define it completely; otherwise make it a subclass."
        )


def _write_manifest(
    folder: Path,
    path: Path,
    manifest: Manifest,
    *,
    parity: ParityRecord | None = None,
    fidelity: Fidelity | None = None,
    files: dict[str, FileRecord] | None = None,
) -> dict[str, FileRecord]:
    """Write the manifest with its records and the checksums of all files, and return the checksums.

    `files` has them if they were computed before.

    Raises:
        ExportError: A reader would refuse the manifest, such as one with an option that is not finite.
    """
    if files is None:
        files = _hash_files(folder, manifest)
    complete = dataclasses.replace(manifest, parity=parity, fidelity=fidelity, files=files)
    try:
        check_manifest(complete)
    except ManifestError as error:
        raise ExportError(f"{path} was not written: {error}") from error
    (folder / MANIFEST).write_text(complete.to_json(), "utf-8")
    return files


def _hash_files(folder: Path, manifest: Manifest) -> dict[str, FileRecord]:
    """Return size and sha256 of every file that the manifest lists."""
    names = sorted([manifest.weights, manifest.golden.file, *(graph.file for graph in manifest.graphs.values())])
    return {name: hash_file(folder / name) for name in names + [LABELS] * (folder / LABELS).exists()}

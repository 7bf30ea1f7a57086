"""Proof without PyTorch: every graph of an artifact, run on this machine, against the artifact's golden batch."""

import os

import numpy as np

from .artifact import read_artifact
from .errors import ArtifactError, ParityError
from .features import TopFeatures
from .golden import load_golden
from .inputs import Array
from .manifest import (
    CONTRACTS,
    FEATURE_IDS,
    FEATURES,
    HOOK_ACTS_POST,
    HOOK_INPUT,
    INDICES,
    INPUT,
    L0,
    TARGET,
    VALUES,
    K,
)
from .parity import Reference, SteeredReference, judge
from .report import Report, Verdict
from .session import SAESession


def verify(path: str | os.PathLike[str], device: str = "auto") -> Report:
    """Return a report on the artifact in the folder `path`: its files, and each output of each of its graphs.

    Raises:
        ArtifactError: the folder is not an artifact.
        ProviderError: the device cannot be used.
    """
    artifact = read_artifact(path)
    problems = []
    for name in artifact.manifest.files:
        try:
            artifact.file(name)
        except ArtifactError as error:
            problems.append(str(error))
    if problems:  # nothing that was changed is run
        return Report(f"{path}: not intact", problems=problems)
    with SAESession(path, device) as session:
        return judge_session(session, load_golden(artifact))


def assert_parity(path: str | os.PathLike[str], device: str = "auto") -> None:
    """Raise unless the artifact in the folder `path` computes on this machine what PyTorch did at export.

    For a service's own test suite.

    Raises:
        ParityError: it does not; the message has every reason: hook, worst index, both values, error and budget.
        ArtifactError: the folder is not an artifact.
        ProviderError: the device cannot be used.
    """
    if read_artifact(path).manifest.parity is None:
        raise ParityError(
            f"{path} has int8 weights: it is not the original, by as much as its manifest says (python -m runtime "
            f"inspect). Whether this machine computes what the exporter's did, verify(path).raise_for_failures() says."
        )
    verify(path, device).raise_for_failures()


def judge_session(session: SAESession, steered: SteeredReference) -> Report:
    """Run every graph of a session that has a contract on a reference's inputs and return the verdicts.

    Those that take no intervention are judged against `steered.clean`; those that are written for the CPU, on one only.
    """
    rounded = session.artifact.manifest.parity is None
    held_to = "; int8 weights, held to twice the errors at export: fidelity, not parity" if rounded else ""
    report = Report(f"{session.artifact.path} on {session.device}: {steered.tokens} tokens{held_to}")
    sources = {INPUT: steered.original[HOOK_INPUT], **steered.clean.original}
    sources |= steered.intervention.feeds((steered.tokens,), session.cfg.dtype)
    if steered.target is not None:
        sources[TARGET] = steered.target
    # More than are on, so that nothing may be missing.
    sources[K] = np.array([min(session.cfg.d_sae, 2 * _most_on(steered.clean) + 8)])
    for graph, contract in CONTRACTS.items():
        if contract.for_cpu and session.device != "cpu":
            continue
        spec = session.artifact.manifest.graphs[graph]
        inputs, expected = ([tensor.name for tensor in tensors] for tensors in (spec.inputs, spec.outputs))
        reference = steered if FEATURE_IDS in inputs else steered.clean
        try:
            outputs = session.run_graph(graph, {name: sources[name] for name in inputs})
        except ArtifactError as error:
            report.problems.append(str(error))
            continue
        finally:
            session.release(graph)  # one copy of the weights at a time
        if graph == FEATURES:
            report.verdicts.extend(_judge_features(outputs, steered.clean))
        else:
            report.verdicts.extend(judge(graph, expected, outputs, reference))
    return report


def _most_on(reference: Reference) -> int:
    return int((reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max(initial=0))


def _judge_features(outputs: dict[str, Array], reference: Reference) -> list[Verdict]:
    """Judge the strongest features as the activations that they stand for, and their number and order besides."""
    found = TopFeatures(outputs[INDICES], outputs[VALUES], outputs[L0])
    d_sae = reference.original[HOOK_ACTS_POST].shape[1]
    try:
        dense = found.dense(d_sae)
    except IndexError as error:
        return [Verdict(FEATURES, INDICES, None, None, (f"{FEATURES}: {INDICES}: {error}",))]
    verdicts = judge(FEATURES, [HOOK_ACTS_POST], {HOOK_ACTS_POST: dense}, reference)
    strength = np.abs(found.values)
    for name, right, why in (
        (L0, found.l0 == (dense != 0).sum(axis=1), "is not the number of features that are on"),
        (VALUES, (strength[:, :-1] >= strength[:, 1:]).all(axis=1), "are not in descending order"),
    ):
        wrong = np.flatnonzero(~right)
        failures = (f"{FEATURES}: {name} {why}: token {wrong[0]} and {len(wrong) - 1} more.",) if len(wrong) else ()
        verdicts.append(Verdict(FEATURES, name, None, None, failures))
    return verdicts

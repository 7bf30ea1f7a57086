"""Proof without PyTorch: every graph of an artifact, run on this machine, against the artifact's golden batch."""

import itertools
import os

import numpy as np

from .artifact import read_artifact
from .blocks import part_of
from .contracts import CONTRACTS, FEATURES
from .errors import ArtifactError, ParityError
from .features import TopFeatures
from .golden import load_golden
from .inputs import Array
from .names import FEATURE_IDS, HOOK_ACTS_POST, HOOK_INPUT, INDICES, INPUT, L0, TARGET, VALUES, K
from .parity import Reference, SteeredReference, judge
from .report import Report, Verdict
from .session import SAESession

FEW_TOKENS = 8
"""At a time, as a service that answers single requests gives them."""


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
            outputs = _run(session, graph, {name: sources[name] for name in inputs}, steered.tokens)
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


def _run(session: SAESession, graph: str, feeds: dict[str, Array], tokens: int) -> dict[str, Array]:
    """Run a graph; one for the CPU on half the tokens at once, and on the others a few at a time.

    What it does depends on how many tokens there are, and a service gives it both.
    """
    if not CONTRACTS[graph].for_cpu:
        return session.run_graph(graph, feeds)
    bounds = [0, *range(tokens // 2, tokens, FEW_TOKENS), tokens]
    spec = session.artifact.manifest.graphs[graph]
    parts = [
        session.run_graph(graph, part_of(spec, feeds, tokens, slice(start, end)))
        for start, end in itertools.pairwise(bounds)
        if end > start
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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

"""Proof without PyTorch: every graph of an artifact, run on this machine, against the artifact's golden batch."""

import os

from .artifact import read_artifact
from .errors import ArtifactError
from .golden import load_golden
from .manifest import CONTRACTS, FEATURE_IDS, HOOK_INPUT, INPUT, TARGET
from .parity import SteeredReference, judge
from .report import Report
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
    verify(path, device).raise_for_failures()


def judge_session(session: SAESession, steered: SteeredReference) -> Report:
    """Run every graph of a session that has a contract on a reference's inputs and return the verdicts.

    Those that take no intervention are judged against `steered.clean`.
    """
    report = Report(f"{session.artifact.path} on {session.device}: {steered.tokens} tokens")
    sources = {INPUT: steered.original[HOOK_INPUT], **steered.clean.original}
    sources |= steered.intervention.feeds((steered.tokens,), session.cfg.dtype)
    if steered.target is not None:
        sources[TARGET] = steered.target
    for graph in CONTRACTS:
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
        report.verdicts.extend(judge(graph, expected, outputs, reference))
    return report

"""Proof without PyTorch: the graphs that this machine can run, against the artifact's golden batch."""

import itertools
import os

import numpy as np

from ..arrays.dtypes import FLOAT32, widened
from ..arrays.tensor import TensorValue
from ..artifact.contracts import FEATURES, contracts_of
from ..artifact.folder import read_artifact
from ..devices.blocks import slice_feeds
from ..devices.start import TENSORRT
from ..errors import ArtifactError, ParityError
from ..session.session import SAESession
from .golden import load_golden
from .proof import judge_graphs
from .reference import Hooks, SteeredReference
from .report import Report

SERVICE_BATCH = 8
"""At a time, as a service that answers single requests gives them."""


def verify(path: str | os.PathLike[str], device: str = "auto", precision: str = FLOAT32) -> Report:
    """Return a report on the artifact in the folder `path`: its files, and each output of each graph that runs here.

    Those of an artifact in half precision that no CPU computes are named, if they were not run.

    Args:
        path: the folder.
        device: where it runs; see `SAESession`.
        precision: likewise; "tf32" has wider budgets, which were measured at export for it.

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
    with SAESession(path, device, precision=precision) as session:
        return judge_session(session, load_golden(artifact, precision))


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
    """Run the graphs of a session that has a contract on a reference's inputs and return the verdicts.

    Those that are written for the CPU are run on one only. In half precision only these are: it does not compute in it.
    """
    manifest, on_cpu = session.artifact.manifest, session.device == "cpu"
    contracts = contracts_of(manifest.sae.dtype)
    graphs = [
        name
        for name, contract in contracts.items()
        if (contract.for_cpu == on_cpu or (on_cpu and manifest.sae.dtype == FLOAT32))
        and not (name == FEATURES and session.device.startswith(TENSORRT))  # which takes no k
    ]
    held_to = "; int8 weights, held to twice the errors at export: fidelity, not parity" if not manifest.parity else ""
    unseen = [name for name, contract in contracts.items() if not contract.for_cpu and name not in graphs]
    not_run = f"; not run here: {', '.join(unseen)}" if unseen else ""
    report = Report(f"{session.artifact.path} on {session.device}: {steered.tokens} tokens{held_to}{not_run}")

    def run(graph: str, feeds: dict[str, TensorValue], tokens: int) -> Hooks:
        try:
            return _run(session, graph, feeds, tokens)
        finally:
            session.release(graph)  # one copy of the weights at a time

    judge_graphs(graphs, manifest, steered, run, report)
    return report


def _run(session: SAESession, graph: str, feeds: dict[str, TensorValue], tokens: int) -> Hooks:
    """Run a graph on all tokens but one at once and on that alone; one for the CPU also on a few at a time.

    What it does may depend on how many tokens there are, and a service gives it both.
    """
    at_once = tokens // 2 if contracts_of(session.cfg.dtype)[graph].for_cpu else tokens - 1
    bounds = [0, *range(at_once, tokens - 1, SERVICE_BATCH), tokens - 1, tokens]
    spec = session.artifact.manifest.graphs[graph]
    parts = [
        session.run_graph(graph, slice_feeds(spec, feeds, tokens, slice(start, end)))
        for start, end in itertools.pairwise(bounds)
        if end > start
    ]
    return {name: np.concatenate([widened(np.asarray(part[name])) for part in parts]) for name in parts[0]}

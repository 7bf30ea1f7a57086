"""Proof without PyTorch: runs the graphs that this machine can run, and compares them with the golden batch."""

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
"""Tokens per call of a service that answers single requests."""


def verify(path: str | os.PathLike[str], device: str = "auto", precision: str = FLOAT32) -> Report:
    """Verify the files of an artifact, and every output of every graph that runs on the device.

    The title of the report names the graphs that were not run, such as those that no CPU computes in half precision.

    Args:
        path: Folder of the artifact.
        device: Device to run on, as `SAESession` takes it.
        precision: "float32", or "tf32" for a GPU that computes float32 products in TF32. TF32 has wider budgets of its
            own, measured at export.

    Returns:
        The report. `report.failures` is empty if the artifact passes. If a file was changed, nothing is run.

    Raises:
        ArtifactError: The folder is not an artifact.
        ProviderError: The device cannot be used.
    """
    artifact = read_artifact(path)
    problems = []
    for name in artifact.manifest.files:
        try:
            artifact.file(name)
        except ArtifactError as error:
            problems.append(str(error))
    if problems:  # do not run what was changed
        return Report(f"{path}: not intact", problems=problems)
    with SAESession(path, device, precision=precision) as session:
        return judge_session(session, load_golden(artifact, precision))


def assert_parity(path: str | os.PathLike[str], device: str = "auto") -> None:
    """Raise an error unless the artifact computes on this machine what PyTorch computed at export.

    It is meant for the test suite of a service.

    Args:
        path: Folder of the artifact.
        device: Device to run on, as `SAESession` takes it.

    Raises:
        ParityError: The artifact does not, or has int8 weights. The message lists every reason: hook, worst index, both
            values, error and budget.
        ArtifactError: The folder is not an artifact.
        ProviderError: The device cannot be used.
    """
    if read_artifact(path).manifest.parity is None:
        raise ParityError(
            f"{path} has int8 weights: it is not the original. Its manifest says how much it loses (python -m runtime "
            "inspect). To check that this machine computes what the exporter's did, "
            "use verify(path).raise_for_failures()."
        )
    verify(path, device).raise_for_failures()


def judge_session(session: SAESession, steered: SteeredReference) -> Report:
    """Run the graphs of an open session on the inputs of a reference and return the verdicts.

    CPU variants are run on a CPU only. Portable graphs in half precision are run on a GPU only, because a CPU does not
    compute in half precision. `features` is not run on TensorRT, which cannot take its input `k`.
    """
    manifest, on_cpu = session.artifact.manifest, session.device == "cpu"
    contracts = contracts_of(manifest.sae.dtype)
    graphs = [
        name
        for name, contract in contracts.items()
        if (contract.for_cpu == on_cpu or (on_cpu and manifest.sae.dtype == FLOAT32))
        and not (name == FEATURES and session.device.startswith(TENSORRT))
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
    """Run a graph on all tokens in several calls; the last call has a single token.

    What a graph computes may depend on the number of tokens, and a service calls it with many and with few. A CPU
    variant also runs in batches of `SERVICE_BATCH`.
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

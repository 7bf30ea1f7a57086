"""Proof without PyTorch: every graph of an artifact, run on this machine, against the artifact's golden batch."""

import itertools
import os

import numpy as np

from .artifact import read_artifact
from .blocks import part_of
from .contracts import DECODE, FEATURES, MODEL, STEER, contracts_of
from .dtypes import BFLOAT16, FLOAT32
from .errors import ArtifactError, ParityError
from .features import TopFeatures
from .golden import load_golden
from .inputs import Array
from .judge import judge
from .names import HOOK_ACTS_POST, HOOK_INPUT, HOOK_RECONS, INDICES, INPUT, L0, TARGET, VALUES, K
from .parity import Decode, Hooks, Reference, SteeredReference
from .providers import TENSORRT
from .report import Report, Verdict
from .session import SAESession
from .tensor import Feed, Tensor

FEW = 1
"""Features of a token that are asked for besides, so that they have to be sought."""

FEW_TOKENS = 8
"""At a time, as a service that answers single requests gives them."""


def verify(path: str | os.PathLike[str], device: str = "auto", precision: str = FLOAT32) -> Report:
    """Return a report on the artifact in the folder `path`: its files, and each output of each of its graphs.

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
    """Run every graph of a session that has a contract on a reference's inputs and return the verdicts.

    Those that take no intervention are judged against `steered.clean`; those that are written for the CPU, on one only.
    In half precision only these run on a CPU: it does not compute in it.
    """
    cfg, on_cpu = session.cfg, session.device == "cpu"
    rounded = session.artifact.manifest.parity is None
    held_to = "; int8 weights, held to twice the errors at export: fidelity, not parity" if rounded else ""
    report = Report(f"{session.artifact.path} on {session.device}: {steered.tokens} tokens{held_to}")
    sources = _sources(session, steered)
    followed: dict[str, Reference] = {}  # by the family of graphs, portable or for the CPU: what its model decided
    for graph, contract in contracts_of(cfg.dtype).items():
        if contract.for_cpu != on_cpu and (contract.for_cpu or cfg.dtype != FLOAT32):
            continue
        kind, dot, twin = graph.partition(".")
        if kind == FEATURES and session.device.startswith(TENSORRT):
            continue  # which takes no k
        spec = session.artifact.manifest.graphs[graph]
        inputs, expected = ([tensor.name for tensor in tensors] for tensors in (spec.inputs, spec.outputs))
        try:
            feeds = {name: sources[name] for name in inputs}
            outputs = _run(session, graph, feeds, steered.tokens)
            fewer = _run(session, graph, {**feeds, K: np.array([FEW])}, steered.tokens) if kind == FEATURES else {}
        except ArtifactError as error:
            report.problems.append(str(error))
            continue
        finally:
            session.release(graph)  # one copy of the weights at a time
        if kind == FEATURES:
            report.verdicts.extend(_judge_features(graph, outputs, fewer, steered.clean))
            continue
        reference: Reference = steered if kind == STEER else steered.clean
        acts_post = outputs.get(HOOK_ACTS_POST)
        if HOOK_RECONS in outputs and acts_post is not None and acts_post.shape == steered.truth[HOOK_ACTS_POST].shape:
            decode = _decoder(session, f"{DECODE}{dot}{twin}", sources)
            if kind == MODEL:
                reference = followed[twin] = reference.following(acts_post, decode)
            elif twin in followed:
                reference = steered.after(followed[twin], acts_post, decode)
        report.verdicts.extend(judge(graph, expected, outputs, reference))
    return report


def _sources(session: SAESession, steered: SteeredReference) -> dict[str, Feed]:
    """Return what the inputs of graphs are taken from, by name."""
    dtype = session.cfg.dtype
    sources = {INPUT: steered.original[HOOK_INPUT], **steered.clean.original}
    if steered.target is not None:
        sources[TARGET] = steered.target
    # More than are on, so that nothing may be missing.
    k = min(session.cfg.d_sae, 2 * _most_on(steered.clean) + 8)
    return {
        **{name: feed_of(array, dtype) for name, array in sources.items()},
        **steered.intervention.feeds((steered.tokens,), dtype),
        K: np.array([k]),
    }


def feed_of(array: Array, dtype: str) -> Feed:
    """Return numbers as an input of a dtype, rounded to it where they are not yet."""
    return Tensor.of(array, dtype) if dtype == BFLOAT16 else array.astype(dtype, copy=False)


def _decoder(session: SAESession, graph: str, sources: dict[str, Feed]) -> Decode:
    """Return a graph of the decoder as a function from some tokens and their activations to their reconstructions."""

    def decode(tokens: Array, acts_post: Array) -> Array:
        dtype = session.cfg.dtype
        given = {HOOK_ACTS_POST: acts_post, INPUT: np.asarray(sources[INPUT])[tokens]}
        inputs = [tensor.name for tensor in session.artifact.manifest.graphs[graph].inputs]
        feeds = {name: feed_of(given[name], dtype) for name in inputs}
        try:
            return np.asarray(session.run_graph(graph, feeds)[HOOK_RECONS])
        finally:
            session.release(graph)

    return decode


def _run(session: SAESession, graph: str, feeds: dict[str, Feed], tokens: int) -> Hooks:
    """Run a graph; one for the CPU on half the tokens at once, and on the others a few at a time.

    What it does depends on how many tokens there are, and a service gives it both.
    """
    if not contracts_of(session.cfg.dtype)[graph].for_cpu:
        return {name: np.asarray(output) for name, output in session.run_graph(graph, feeds).items()}
    bounds = [0, *range(tokens // 2, tokens, FEW_TOKENS), tokens]
    spec = session.artifact.manifest.graphs[graph]
    parts = [
        session.run_graph(graph, part_of(spec, feeds, tokens, slice(start, end)))
        for start, end in itertools.pairwise(bounds)
        if end > start
    ]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def _most_on(reference: Reference) -> int:
    return int((reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max(initial=0))


def _judge_features(graph: str, outputs: Hooks, fewer: Hooks, reference: Reference) -> list[Verdict]:
    """Judge the strongest features as the activations that they stand for, and their number and order besides.

    Of fewer, they must be the first of them: where all are found, the strongest need not be sought.
    """
    found = TopFeatures(outputs[INDICES], outputs[VALUES], outputs[L0])
    d_sae = reference.original[HOOK_ACTS_POST].shape[1]
    try:
        dense = found.dense(d_sae)
    except IndexError as error:
        return [Verdict(graph, INDICES, None, None, (f"{graph}: {INDICES}: {error}",))]
    verdicts = judge(graph, [HOOK_ACTS_POST], {HOOK_ACTS_POST: dense}, reference)
    strength = np.abs(found.values)
    places = np.sort(np.where(found.values != 0, found.indices, -1 - np.arange(strength.shape[1])), axis=1)
    for name, right, why in (
        (INDICES, (places[:, 1:] != places[:, :-1]).all(axis=1), "name a feature twice"),
        (L0, found.l0 == (dense != 0).sum(axis=1), "is not the number of features that are on"),
        (VALUES, (strength[:, :-1] >= strength[:, 1:]).all(axis=1), "are not in descending order"),
        (K, (fewer[VALUES] == outputs[VALUES][:, :FEW]).all(axis=1), f"= {FEW} does not give the strongest"),
    ):
        wrong = np.flatnonzero(~right)
        failures = (f"{graph}: {name} {why}: token {wrong[0]} and {len(wrong) - 1} more.",) if len(wrong) else ()
        if failures or name not in (INDICES, K):
            verdicts.append(Verdict(graph, name, None, None, failures))
    return verdicts

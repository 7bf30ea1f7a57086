"""Proof of another program: what a server or another engine computes, judged by the rule of `verify`."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..arrays.dtypes import widened
from ..arrays.tensor import Array, TensorValue
from ..artifact.contracts import CPU_VARIANTS, MODEL
from ..errors import InputError
from ..session.session import SAESession
from .golden import load_golden
from .proof import judge_graphs
from .reference import Hooks
from .report import Report
from .verify import read_intact

RunOutputs: TypeAlias = Callable[[str, dict[str, Array]], Mapping[str, Any]]
"""Runs a graph elsewhere: `run(graph, inputs)` returns its outputs by name."""


def verify_outputs(path: str | os.PathLike[str], run: RunOutputs, graphs: Sequence[str] = (MODEL,)) -> Report:
    """Verify what another program computes with an artifact, such as a server or another engine.

    The program is given the inputs of the golden batch, and its outputs are judged as `verify` judges those of this
    machine. Where it decides about a feature differently from PyTorch, the graphs `activate` and `decode` tell what
    must follow; they run here, on a CPU.

    Args:
        path: Folder of the artifact on this machine.
        run: Function `run(graph, inputs)` that has the program compute a graph: `inputs` are arrays by name, in the
            dtype of the artifact, and the result has the graph's outputs by name, in the order of the manifest.
        graphs: Names of the graphs to judge.

    Returns:
        The report. `report.failures` is empty if the outputs pass.

    Raises:
        ArtifactError: The folder is not an artifact.
        InputError: The artifact does not have one of the graphs, or none is given.
    """
    artifact = read_intact(path)
    if isinstance(artifact, Report):
        return artifact
    manifest = artifact.manifest
    if isinstance(graphs, str) or not graphs:  # a report without verdicts would pass
        raise InputError(f"graphs is {graphs!r}; it must be a list of one or more of {', '.join(manifest.graphs)}.")
    if unknown := [graph for graph in graphs if graph not in manifest.graphs]:
        raise InputError(f"{artifact.path} has no graph {', '.join(unknown)}; it has {', '.join(manifest.graphs)}.")
    steered = load_golden(artifact)
    report = Report(
        f"outputs of another program for {artifact.path}: {steered.tokens} tokens",
        artifact=artifact, device="another program", tokens=steered.tokens,
    )  # fmt: skip
    with SAESession(artifact.path, "cpu", shared_stages=False) as here:

        def run_there(graph: str, feeds: dict[str, TensorValue], tokens: int) -> Hooks:
            if graph in graphs:
                outputs = run(graph, {name: np.asarray(array) for name, array in feeds.items()})
            else:  # in half precision a CPU runs CPU variants only
                outputs = here.run_graph(CPU_VARIANTS[manifest.sae.dtype].get(graph, graph), feeds)
            return {name: widened(np.asarray(array)) for name, array in outputs.items()}

        judge_graphs(graphs, manifest, steered, run_there, report)
    return report

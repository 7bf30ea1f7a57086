"""Prints the time of each node of a graph: `python -m benchmarks.costs.profile`.

Runs one graph of an artifact with ONNX Runtime's profiler and prints its nodes, the slowest first. The time of a node
is the median over runs of the sum of its calls. The nodes inside an `If` or a `Loop` also count as part of it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.cpu.contenders.uses import FEW
from benchmarks.shared.machine import available_cores, parse_shape
from benchmarks.shared.node_times import read_profile
from benchmarks.shared.saes import make_workload
from runtime.arrays.tensor import Array
from runtime.artifact.contracts import MODEL, SPARSE, graph_file
from runtime.artifact.names import INPUT, K
from saeexport import export


def main() -> None:
    """Export an SAE, run the graph, print its nodes."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", default="768x24576", metavar="D_INxD_SAE", help="size of the SAE")
    parser.add_argument("--frequencies", choices=["realistic", "uniform"], default="realistic", help="how it is made")
    parser.add_argument("--graph", default=SPARSE[MODEL], help="graph to run")
    parser.add_argument("--rows", type=int, default=512, help="rows of the input")
    parser.add_argument("--runs", type=int, default=30, help="number of runs")
    parser.add_argument("--nodes", type=int, default=20, help="number of nodes to print")
    options = parser.parse_args()
    workload = make_workload(*parse_shape(options.shape), frequencies=options.frequencies)
    with tempfile.TemporaryDirectory() as folder:
        export(workload.sae, Path(folder) / "sae", activations=workload.inputs(256))
        nodes = profile(Path(folder) / "sae" / graph_file(options.graph), workload.inputs(options.rows), options.runs)
    for name, milliseconds in nodes[: options.nodes]:
        operator, node = name.split(" ", 1)
        print(f"{milliseconds:9.3f} ms  {operator:<16} {node}")


def profile(graph: Path, x: Array, runs: int) -> list[tuple[str, float]]:
    """Return the nodes of a graph and the milliseconds of each in a run, the slowest first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.parent / "profile")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feeds = {INPUT: x, K: np.array([FEW])}
    for _ in range(runs):
        session.run(None, {argument.name: feeds[argument.name] for argument in session.get_inputs()})
    times = read_profile(Path(session.end_profiling()))
    medians = {name: float(np.median(np.reshape(calls, (runs, -1)).sum(axis=1))) for name, calls in times.items()}
    return sorted(medians.items(), key=lambda node: -node[1])


if __name__ == "__main__":
    main()

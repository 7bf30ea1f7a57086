"""Where the time of a graph goes: `python -m benchmarks.costs.profile`.

Runs one graph of an artifact with ONNX Runtime's profiler and prints its nodes, the slowest first: the median over runs
of what all calls of a node took together. What `If` and `Loop` contain is counted in them, too.
"""

import argparse
import collections
import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.shared.machine import cores, shape_of
from benchmarks.shared.saes import subject_of
from runtime.artifact.contracts import MODEL, SPARSE, graph_file
from runtime.artifact.names import INPUT
from saeexport import export


def main() -> None:
    """Export, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=shape_of, default="768x24576", metavar="D_INxD_SAE")
    parser.add_argument("--frequencies", choices=["realistic", "uniform"], default="realistic")
    parser.add_argument("--graph", default=SPARSE[MODEL])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--nodes", type=int, default=20, help="how many are printed (20)")
    options = parser.parse_args()
    subject = subject_of(*options.shape, frequencies=options.frequencies)
    with tempfile.TemporaryDirectory() as folder:
        export(subject.sae, Path(folder) / "sae", activations=subject.inputs(256))
        nodes = profile(Path(folder) / "sae" / graph_file(options.graph), subject.inputs(options.rows), options.runs)
    for name, milliseconds in nodes[: options.nodes]:
        print(f"{milliseconds:9.3f} ms  {name}")


def profile(graph: Path, x: np.ndarray, runs: int) -> list[tuple[str, float]]:
    """Return the nodes of a graph, each with the milliseconds that it takes in a run, the slowest first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.parent / "profile")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {INPUT: x})
    took: dict[str, list[float]] = collections.defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            took[f"{event['args']['op_name']:<16} {event['name'].removesuffix('_kernel_time')}"].append(event["dur"])
    medians = {name: float(np.median(np.reshape(times, (runs, -1)).sum(axis=1))) / 1e3 for name, times in took.items()}
    return sorted(medians.items(), key=lambda node: -node[1])


if __name__ == "__main__":
    main()

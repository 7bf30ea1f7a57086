"""Tries every graph of an artifact in one engine: `python examples/engines/survey.py ENGINE ARTIFACT`.

It prints "ok" for each graph, or why it cannot be used, and what the artifact says that the graph needs. The packages
of `requirements/ENGINE.txt` must be installed; neither `runtime` nor PyTorch is needed.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from engines import ENGINES
from golden import Golden
from safetensors.numpy import load_file

RESULTS = Path(__file__).parent / "engines.json"


def try_graph(engine: str, artifact: Path, graph: str, golden: Golden) -> str:
    """Return "ok", or how a graph fails: "refused", "fails" or "differs", with the first words of the reason."""
    spec = golden.manifest["graphs"][graph]
    stage = "refused"
    try:
        run = ENGINES[engine](artifact / spec["file"], spec)
        stage = "fails"
        outputs = run(golden.feeds(spec))
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{stage}: {' '.join(str(error).split())[:160]}"
    kind = graph.partition(".")[0]
    differences = golden.differences({"acts": "encode"}.get(kind, kind), outputs)
    return f"differs: {'; '.join(differences)}" if differences else "ok"


def main() -> int:
    """Try the graphs and print the result. Return 1 if it was to be compared with the recorded one and differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--record", action="store_true", help=f"write the result to {RESULTS.name}")
    parser.add_argument("--compare", action="store_true", help=f"exit with 1 if the result differs from {RESULTS.name}")
    options = parser.parse_args()
    manifest = json.loads((options.artifact / "sae.json").read_text("utf-8"))
    if manifest["weights_dtype"] != "float32":
        parser.error(
            f"{options.artifact} has {manifest['weights_dtype']} weights; the rule of golden.py is for float32. "
            "Use python -m runtime verify."
        )
    golden = Golden(manifest, load_file(options.artifact / manifest["golden"]["file"]))
    name = f"{options.engine} {importlib.metadata.version(options.engine)}"
    graphs = {graph: try_graph(options.engine, options.artifact, graph, golden) for graph in manifest["graphs"]}
    print(name)
    for graph, found in graphs.items():
        print(f"  {graph:16} {needs(manifest['graphs'][graph]):18} {found}")
    recorded = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if options.record:
        RESULTS.write_text(json.dumps(dict(sorted({**recorded, name: graphs}.items())), indent=1) + "\n", "utf-8")
    return compare(name, graphs, recorded) if options.compare else 0


def needs(spec: dict[str, Any]) -> str:
    """Return what an artifact says about the engines of a graph; artifacts of earlier releases say nothing."""
    requires = spec.get("requires")
    return "" if requires is None else "any engine" if requires["portable"] else "ONNX Runtime only"


def compare(name: str, graphs: dict[str, str], recorded: dict[str, dict[str, str]]) -> int:
    """Print how the result for an engine differs from the recorded one, and return 1 if it does."""
    wanted = {graph: verdict_of(text) for graph, text in recorded.get(name, {}).items()}
    different = [
        graph for graph in {**wanted, **graphs} if wanted.get(graph) != verdict_of(graphs.get(graph, "missing"))
    ]
    for graph in different:
        print(f"{name}: {graph}: {RESULTS.name} has {wanted.get(graph)!r}.", file=sys.stderr)
    return 1 if different else 0


def verdict_of(text: str) -> str:
    """Return the verdict of a result without its reason."""
    return text.partition(":")[0]


if __name__ == "__main__":
    sys.exit(main())

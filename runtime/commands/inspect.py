"""`python -m runtime inspect`: the configuration, graphs and parity record of an artifact or a grafted host."""

import argparse
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from ..artifact.contracts import contracts_of
from ..artifact.engines import STANDARD
from ..artifact.folder import Artifact, read_artifact
from ..artifact.manifest import GraphSpec, HookParity, Manifest, TensorSpec
from ..hosts.folder import is_host, read_host
from ..parity.fidelity import describe_fidelity
from ..tables import format_table
from .inspect_host import describe_host

WIDTH = 100
"""Characters per line, where a text can be wrapped."""


def inspect_command(options: argparse.Namespace) -> int:
    """Print what an artifact or a grafted host contains."""
    folder = options.artifact
    print(describe_host(read_host(folder)) if is_host(folder) else describe(read_artifact(folder)))
    return 0


def describe(artifact: Artifact) -> str:
    """Return the configuration, graphs, tensors, parity record and fidelity of an artifact as text."""
    manifest = artifact.manifest
    sae, parity = manifest.sae, manifest.record
    shape = " x ".join(map(str, sae.input_shape))
    named = "parity" if manifest.parity else "errors"
    left_out = f" ({parity.left_out} left out because PyTorch itself is inexact on them)" if parity.left_out else ""
    families = (("graphs", False), ("CPU variants, which `auto` prefers on a CPU", True))
    parts = [
        f"{artifact.path}: {sae.architecture} SAE on {sae.hook_name}, {shape} -> {sae.d_sae} features, {sae.dtype}",
        _facts(manifest),
        *(f"{title}\n{_graphs(manifest, for_cpu)}" for title, for_cpu in families),
        f"tensors of the graphs\n{_tensors(manifest.graphs.values())}",
        f"{named} at export, {parity.tokens} tokens on {parity.device}{left_out}; "
        f"largest errors against float64\n{_errors(parity.hooks, parity.steered)}",
    ]
    if manifest.fidelity is not None:
        no_parity = "" if manifest.parity else "no parity but "
        lost = f"{manifest.weights_dtype} weights: {no_parity}{describe_fidelity(manifest.fidelity)}"
        parts.append(textwrap.fill(lost, WIDTH))
    return "\n\n".join(parts)


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the facts about an SAE and its files, each with its name."""
    sae, golden = manifest.sae, manifest.golden
    optional = (
        ("model", sae.model_name),
        ("neuronpedia", sae.neuronpedia_id),
        ("features", sae.feature_ids and f"of a larger SAE: {', '.join(map(str, sae.feature_ids))}"),
        ("options", ", ".join(f"{name} = {value}" for name, value in sae.options.items())),
    )
    return [
        *((name, str(value)) for name, value in optional if value),
        ("error term", "on: output = recons + error" if sae.use_error_term else "off: output = recons"),
        ("hooks", ", ".join(sae.fired_hooks)),
        ("weights", f"{manifest.weights}, {manifest.weights_dtype}{_record(manifest, manifest.weights)}"),
        ("golden batch", f"{golden.file}, {golden.tokens} tokens, {golden.source}{_record(manifest, golden.file)}"),
        *_engines(manifest),
        *([("exported from", manifest.provenance["source"])] if "source" in manifest.provenance else []),
        ("made with", ", ".join(f"{name} {text}" for name, text in manifest.provenance.items() if name != "source")),
        ("format", str(manifest.format_version)),
    ]


def _engines(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield which graphs every engine can load, and which are for ONNX Runtime only.

    Manifests of earlier releases do not say it.
    """
    alike: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    for name, graph in manifest.graphs.items():
        if (needed := graph.requires) is not None:
            release = f"from {needed.onnxruntime} on" if needed.onnxruntime else "in a release that is not known"
            form = f"ONNX opset {needed.opset_import[STANDARD]}, IR version {needed.ir_version}, {manifest.sae.dtype}"
            text = f"with {form}, such as ONNX Runtime {release}" if needed.portable else release
            alike[needed.portable].setdefault(text, []).append(name)
    for title, start, found in (("any engine", "", alike[True]), ("ONNX Runtime", "only, ", alike[False])):
        if found:
            yield title, start + "; ".join(f"{text}: {', '.join(names)}" for text, names in found.items())


def _facts(manifest: Manifest) -> str:
    """Return a line for each fact."""
    known = facts(manifest)
    indent = 4 + max(len(name) for name, _ in known)
    rows = [
        (name if first else "", line)
        for name, text in known
        for first, line in zip([True] + [False] * len(text), textwrap.wrap(text, WIDTH - indent), strict=False)
    ]
    return format_table(rows, indent=2)


def _record(manifest: Manifest, name: str) -> str:
    """Return the size and the start of the checksum of a file."""
    file = manifest.files.get(name)
    return f", {file.bytes:,} bytes, sha256 {file.sha256[:16]}" if file else ""


def _graphs(manifest: Manifest, for_cpu: bool) -> str:
    """Return a line for each portable graph or each CPU variant: file, size, inputs and outputs."""
    contracts = contracts_of(manifest.sae.dtype)
    rows = [
        (graph.file, f"{manifest.files[graph.file].bytes:,} bytes", describe_signature(graph, manifest.sae.hooks))
        for name, graph in manifest.graphs.items()
        if (name in contracts and contracts[name].for_cpu) == for_cpu
    ]
    return format_table(rows, right={1}, indent=2)


def describe_signature(graph: GraphSpec, hooks: Sequence[str]) -> str:
    """Return the inputs and outputs of a graph, by name."""
    outputs = [tensor.name for tensor in graph.outputs]
    given = "all hooks" if outputs == list(hooks) else ", ".join(outputs)
    return f"{', '.join(tensor.name for tensor in graph.inputs)} -> {given}"


def _tensors(graphs: Iterable[GraphSpec]) -> str:
    """Return a line for each input and output; a tensor has the same dtype and shape in every graph."""
    tensors: dict[TensorSpec, None] = {}
    for graph in graphs:
        tensors.update(dict.fromkeys((*graph.inputs, *graph.outputs)))
    rows = [(tensor.name, tensor.dtype, f"[{', '.join(map(str, tensor.shape))}]") for tensor in tensors]
    return format_table(rows, indent=2)


def _errors(clean: dict[str, HookParity], steered: dict[str, HookParity]) -> str:
    """Return a line for each hook: the errors of the original and of the artifact."""
    rows = [
        (
            f"{hook}{suffix}",
            *(f"{errors.token:.2e}" for errors in (record.original, record.artifact)),
            *(f"{errors.element:.2e}" for errors in (record.original, record.artifact)),
        )
        for hooks, suffix in ((clean, ""), (steered, ", steered"))
        for hook, record in hooks.items()
    ]
    header = ("hook", "PyTorch, token", "artifact, token", "PyTorch, element", "artifact, element")
    return format_table(rows, header=header, right={1, 2, 3, 4}, indent=2)

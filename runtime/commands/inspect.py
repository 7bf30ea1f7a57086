"""What an artifact is, in words: the text of `python -m runtime inspect`."""

import textwrap

from ..artifact.folder import Artifact
from ..artifact.manifest import TensorSpec
from ..parity.fidelity import describe_fidelity


def describe(artifact: Artifact) -> str:
    """Return config, graphs, hooks, parity and provenance as text."""
    manifest = artifact.manifest
    sae, golden, measured = manifest.sae, manifest.golden, manifest.record
    shape = " x ".join(map(str, sae.input_shape))
    lines = [
        f"{artifact.path}: {sae.architecture} SAE on {sae.hook_name}, {shape} -> {sae.d_sae} features, {sae.dtype}",
        f"  error term     {'on: output = recons + error' if sae.use_error_term else 'off: output = recons'}",
        f"  hooks that fire  {', '.join(sae.fired_hooks)}",
        f"  golden batch   {golden.tokens} tokens, {golden.source}",
        f"  format         {manifest.format_version}",
        "",
        "graphs",
    ]
    for name, graph in manifest.graphs.items():
        lines.append(f"  {name:<8} {graph.file}")
        lines += textwrap.wrap(graph.description, 110, initial_indent="    ", subsequent_indent="    ")
        lines += [f"    in   {_tensor(tensor)}" for tensor in graph.inputs]
        lines += [f"    out  {_tensor(tensor)}" for tensor in graph.outputs]
    if manifest.fidelity is not None:
        no_parity = "" if manifest.parity else "no parity but "
        lost = f"{manifest.weights_dtype} weights: {no_parity}{describe_fidelity(manifest.fidelity)}"
        lines += ["", *textwrap.wrap(lost, 118)]
    lines += [
        "",
        f"{'parity' if manifest.parity else 'errors'} at export, {measured.tokens} tokens on {measured.device}, "
        f"{measured.left_out} that cancel left out; errors against float64 (token, element)",
    ]
    for hooks, when in ((measured.hooks, ""), (measured.steered, "  under an intervention")):
        for hook, record in hooks.items():
            original, own = record.original, record.artifact
            lines.append(
                f"  {hook:<20} PyTorch {original.token:.2e} {original.element:.2e}"
                f"   artifact {own.token:.2e} {own.element:.2e}{when}"
            )
    lines += ["", "made with", "  " + ", ".join(f"{name} {version}" for name, version in manifest.provenance.items())]
    lines += ["", "files"]
    lines += [f"  {name:<22} {file.bytes:>12,} bytes  {file.sha256[:16]}" for name, file in manifest.files.items()]
    return "\n".join(lines)


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name:<20} {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"

"""The command `saeexport graft`: it grafts SAEs into the ONNX model of their language model."""

import argparse
from typing import Any

from runtime.artifact.names import HOOK_NAMES
from runtime.errors import GraftError
from runtime.hosts.folder import GraftedHost
from runtime.hosts.manifest import Evidence
from runtime.hosts.names import MODES
from runtime.tables import format_table

from .asked import split_sae
from .graft import graft


def add_graft_command(commands: Any) -> None:
    """Add the command to the commands of a parser."""
    text = (
        "Graft SAEs into the ONNX model of their language model, and prove that the result computes what PyTorch does."
    )
    sub = commands.add_parser("graft", help=text, description=text)
    sub.set_defaults(command=graft_command)
    sub.add_argument("host", help="ONNX model of the language model, or hf:MODEL_DIR to export one of transformers")
    sub.add_argument(
        "--sae", metavar="[HOOK[@VALUE]=]ARTIFACT", action="append", required=True,
        help="folder with sae.json, once for each SAE; HOOK is the TransformerLens name of the hook (default: the "
        "artifact's), VALUE the name of the host's value at it (default: it is found); HOOK[@VALUE],HOOK[@VALUE] are "
        "what a transcoder reads and what it predicts",
    )  # fmt: skip
    sub.add_argument("out", help="folder to write")
    group = sub.add_mutually_exclusive_group()
    group.add_argument(
        "--hf",
        metavar="MODEL_DIR",
        help="folder of the same model for transformers, to confirm the values and the result",
    )
    group.add_argument(
        "--reference", metavar="FILE",
        help=".safetensors or .npz file with the host's inputs by name, and optionally activations as hooks/HOOK and "
        "outputs as outputs/NAME",
    )  # fmt: skip
    sub.add_argument(
        "--modes", type=_names, default=MODES, metavar="MODE,...", help=f"graphs to write (default: {','.join(MODES)})"
    )
    sub.add_argument(
        "--hooks", type=_names, default=HOOK_NAMES, metavar="HOOK,...",
        help="hooks of each SAE that tap and splice give, with hook_sae_input and hook_sae_acts_post (default: all)",
    )  # fmt: skip
    sub.add_argument("--force", action="store_true", help="graft at each VALUE even if it cannot be confirmed")
    sub.add_argument("--overwrite", action="store_true", help="replace a grafted host at OUT")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def graft_command(options: argparse.Namespace) -> int:
    """Graft the SAEs and print a summary of the folder."""
    host = graft(
        options.host, _saes(options.sae), options.out, hf=options.hf, reference=options.reference,
        modes=options.modes, hooks=options.hooks, force=options.force, overwrite=options.overwrite,
    )  # fmt: skip
    print(describe_host(host))
    return 0


def _saes(texts: list[str]) -> "dict[str, str] | list[str]":
    """Return the SAEs as `graft` takes them.

    Raises:
        GraftError: Some have a hook and others do not, or a hook is named twice.
    """
    pairs = [split_sae(text) for text in texts]
    if not any(key for key, _ in pairs):
        return texts
    saes = dict(pairs)
    if "" in saes or len(saes) < len(texts):
        raise GraftError(f"--sae {', '.join(texts)}: name a hook for each SAE or for none, and each hook once.")
    return saes


def describe_host(host: GraftedHost) -> str:
    """Return what was grafted, how the values were identified, and what the proof measured."""
    manifest = host.manifest
    size = sum(record.bytes for record in manifest.files.values()) / 1e6
    rows = [(place.hook, place.value, _evidence(place.evidence)) for sae in manifest.saes for place in sae.places]
    lines = [
        f"{host.path}: {len(manifest.graphs)} graphs, {size:.1f} MB",
        format_table(rows, header=("hook", "value", "evidence")),
    ]
    parity = manifest.parity
    against = (
        "the model in PyTorch" if parity.reference == "pytorch" else "its stages with the PyTorch SAEs between them"
    )
    for what, records in (("tap", parity.tap), ("splice", parity.splice)):
        if records:
            worst = max(records.values(), key=lambda record: record.error / record.budget)
            compared = "the ungrafted host" if what == "tap" else against
            measured = f"error {worst.error:.1e}, budget {worst.budget:.1e}"
            lines.append(f"{what} against {compared} on {parity.tokens} tokens: {measured}")
    return "\n".join([*lines, f"prove it without PyTorch: python -m runtime verify {host.path}"])


def _evidence(evidence: Evidence) -> str:
    if evidence.error is not None:
        nearest = "" if evidence.runner_up_error is None else f", the next value {evidence.runner_up_error:.1e}"
        return f"{evidence.method}: error {evidence.error:.1e}{nearest}"
    if evidence.variance_explained is not None:
        return f"{evidence.method}: the SAE explains {evidence.variance_explained:.1%}"
    return str(evidence.method)

"""The command `saeexport locate`: it lists the values of a host that may be the tensor at an SAE's hook."""

import argparse
from typing import Any

from runtime.errors import GraftError
from runtime.tables import format_table

from .asked import split_sae
from .candidates import Candidate
from .search import Search, locate

MOST_ROWS = 12


def add_locate_command(commands: Any) -> None:
    """Add the command to the commands of a parser."""
    text = "List the values of a host that may be the tensor at an SAE's hook, with the evidence for each."
    sub = commands.add_parser("locate", help=text, description=text)
    sub.set_defaults(command=locate_command)
    sub.add_argument("host", help="ONNX model of the language model, or hf:MODEL_DIR to export one of transformers")
    sub.add_argument(
        "--sae", metavar="[HOOK=]ARTIFACT", required=True,
        help="folder with sae.json; HOOK is the TransformerLens name of the hook (default: the artifact's)",
    )  # fmt: skip
    group = sub.add_mutually_exclusive_group()
    group.add_argument(
        "--hf", metavar="MODEL_DIR", help="folder of the same model for transformers, with whose activation to compare"
    )
    group.add_argument(
        "--reference", metavar="FILE",
        help=".safetensors or .npz file with the host's inputs by name and the activation as hooks/HOOK",
    )  # fmt: skip


def locate_command(options: argparse.Namespace) -> int:
    """Print the candidates, then the value at the hook or the reason why there is none."""
    hook, artifact = split_sae(options.sae)
    search = locate(options.host, artifact, hook=hook or None, hf=options.hf, reference=options.reference)
    print(describe_search(search))
    if search.refusal is not None:
        raise GraftError(search.refusal)
    return 0


def describe_search(search: Search) -> str:
    """Return the candidates as a table, and below it the value at the hook if it was found."""
    shown = search.candidates[:MOST_ROWS]
    header = ("value", "operator", "shape", "error", "explained", "named so", "")
    lines = [format_table([_row(candidate, search) for candidate in shown], header=header)] if shown else []
    if (left := len(search.candidates) - len(shown)) > 0:
        lines.append(f"{left} more values of this width fit less well.")
    if search.located is not None:
        evidence = search.located.evidence
        lines.append(f"{search.hook} is {search.located.value} (by {evidence.method}, {evidence.tokens} tokens)")
    return "\n".join(lines)


def _row(candidate: Candidate, search: Search) -> tuple[str, ...]:
    located = search.located is not None and search.located.value == candidate.value
    return (
        candidate.value,
        candidate.operator,
        "x".join(map(str, candidate.shape)),
        "" if candidate.error is None else f"{candidate.error:.1e}",
        _percentage(candidate.variance_explained),
        "yes" if candidate.proposed else "",
        "<- the hook" if located else f"= {candidate.alias_of}" if candidate.alias_of else "",
    )


def _percentage(explained: float | None) -> str:
    """Return how much of the variance an SAE explains; less than nothing is not told more exactly."""
    if explained is None:
        return ""
    return f"{explained:.1%}" if explained >= 0 else "< 0"

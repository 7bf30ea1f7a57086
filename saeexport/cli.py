"""`saeexport export | verify | inspect | formats`: the command line of the exporter."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from runtime.arrays.dtypes import FLOAT32
from runtime.artifact.manifest import INT8
from runtime.commands.console import run
from runtime.errors import SAEError
from runtime.parity.fidelity import describe_fidelity
from runtime.parity.reference import FLOOR

from ._export import export
from .checkpoints.registry import FORMATS, load, recognise
from .original.architectures import ARCHITECTURES
from .proof.activations import read_activations
from .proof.verify import verify


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, or 1 if an artifact fails verification, or 2 if the command cannot be carried out."""
    return run(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="saeexport", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    text = "Export a checkpoint to a folder that any ONNX Runtime executes, verified."
    sub = commands.add_parser("export", help=text, description=text)
    sub.set_defaults(command=export_command)
    sub.add_argument("checkpoint", help="a file or folder of a format that `saeexport formats` lists")
    sub.add_argument("out", help="the folder to write")
    sub.add_argument("--activations", metavar="FILE", help="real inputs, .npy, .npz or .safetensors with one array")
    sub.add_argument("--heads", type=int, metavar="N", help="graphs take (tokens, N, d_head); for hooks that end in _z")
    sub.add_argument(
        "--error-term", action=argparse.BooleanOptionalAction, help="output = recons + error, or not; else as stored"
    )
    sub.add_argument("--hook-name", metavar="NAME", help="where the activations come from; else the checkpoint's")
    sub.add_argument("--dtype", choices=list(FLOOR), help="of weights and activations; else the checkpoint's")
    sub.add_argument(
        "--weights", choices=[INT8], help="a quarter of the bytes, faster for a few tokens on a CPU, and no parity"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an artifact that is at OUT")

    text = "Prove that an artifact computes what PyTorch computes here and now; else exit 1."
    sub = commands.add_parser("verify", help=text, description=text)
    sub.set_defaults(command=verify_command)
    sub.add_argument("artifact", help="the folder with sae.json")
    sub.add_argument("--against", metavar="CHECKPOINT", help="the original; the artifact's own weights without")
    sub.add_argument("--activations", metavar="FILE", help="inputs, as for export; the golden batch without")
    sub.add_argument("--device", default="auto", help="of the artifact: auto (default), cpu, cuda or cuda:N")

    text = "Print what a checkpoint or an artifact holds: format, architecture, config, tensors."
    sub = commands.add_parser("inspect", help=text, description=text)
    sub.set_defaults(command=inspect_command)
    sub.add_argument("checkpoint", help="a file or folder of a format that `saeexport formats` lists")

    text = "Print the formats that can be read: name, files, architectures."
    sub = commands.add_parser("formats", help=text, description=text)
    sub.set_defaults(command=formats_command)
    return parser


def export_command(options: argparse.Namespace) -> int:
    """Export, and say in three lines what was made."""
    sae = load(options.checkpoint, hook_name=options.hook_name)
    if options.error_term is not None:
        sae.cfg.use_error_term = options.error_term
    head_shape = None
    if options.heads is not None:
        if options.heads < 1 or sae.cfg.d_in % options.heads:
            raise SAEError(f"--heads is {options.heads}; it must divide d_in = {sae.cfg.d_in}.")
        head_shape = (options.heads, sae.cfg.d_in // options.heads)
    activations = None if options.activations is None else read_activations(options.activations)
    artifact = export(
        sae, options.out, activations, head_shape,
        dtype=options.dtype, weights=options.weights, overwrite=options.overwrite,
    )  # fmt: skip

    manifest, measured = artifact.manifest, artifact.manifest.parity
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    print(f"{artifact.path}: {len(manifest.graphs)} graphs, {size:.1f} MB")
    if measured is not None:
        own, original = (
            max(getattr(record, which).token for record in measured.hooks.values())
            for which in ("artifact", "original")
        )
        precision = "" if manifest.sae.dtype == FLOAT32 else f" in {manifest.sae.dtype}"
        left_out = f", {measured.left_out} that cancel left out" if measured.left_out else ""
        print(
            f"parity{precision} on {measured.tokens} tokens ({manifest.golden.source}{left_out}): "
            f"largest error against float64 {own:.1e}, PyTorch's own {original:.1e}"
        )
    if manifest.fidelity is not None:
        print(f"{'no parity but ' if measured is None else ''}{describe_fidelity(manifest.fidelity)}")
    print(f"prove it without PyTorch: python -m runtime verify {artifact.path}")
    return 0


def verify_command(options: argparse.Namespace) -> int:
    """Print the parity table."""
    sae = None if options.against is None else load(options.against)
    activations = None if options.activations is None else read_activations(options.activations)
    report = verify(options.artifact, sae, activations, options.device)
    print(report)
    return 1 if report.failures else 0


def inspect_command(options: argparse.Namespace) -> int:
    """Print the config and the tensors."""
    form = recognise(Path(options.checkpoint))
    sae = load(options.checkpoint)
    config = {field.name: getattr(sae.cfg, field.name) for field in fields(sae.cfg) if field.name != "device"}
    lines = {"format": f"{form.TITLE}: {form.NAME}", "architecture": sae.architecture, **config}
    tensors = [
        (name, str(list(tensor.shape)), str(tensor.dtype).removeprefix("torch."), f"{tensor.nbytes:,} bytes")
        for name, tensor in sae.named_parameters()
    ]
    print_columns(
        [
            (key, "(not given)" if value in (None, "") else str(value).removeprefix("torch."))
            for key, value in lines.items()
        ]
    )
    print()
    print_columns(tensors)
    return 0


def formats_command(options: argparse.Namespace) -> int:
    """Print a row for each format."""
    rows = [
        (
            form.TITLE,
            form.NAME,
            "all" if set(form.ARCHITECTURES) == set(ARCHITECTURES) else ", ".join(form.ARCHITECTURES),
        )
        for form in FORMATS
    ]
    print_columns([("format", "files", "architectures"), *rows])
    return 0


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())

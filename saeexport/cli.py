"""`saeexport export | verify`: the command line of the exporter."""

import argparse
import sys

from runtime.console import run
from runtime.errors import SAEError

from .activations import read_activations
from .checkpoints import load
from .export import export
from .verify import verify


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
    sub.add_argument("checkpoint", help="an artifact, or a .safetensors or .pt state dict with its config beside it")
    sub.add_argument("out", help="the folder to write")
    sub.add_argument("--activations", metavar="FILE", help="real inputs, .npy, .npz or .safetensors with one array")
    sub.add_argument("--heads", type=int, metavar="N", help="graphs take (tokens, N, d_head); for hooks that end in _z")
    sub.add_argument(
        "--error-term", action=argparse.BooleanOptionalAction, help="output = recons + error, or not; else as stored"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an artifact that is at OUT")

    text = "Prove that an artifact computes what PyTorch computes here and now; else exit 1."
    sub = commands.add_parser("verify", help=text, description=text)
    sub.set_defaults(command=verify_command)
    sub.add_argument("artifact", help="the folder with sae.json")
    sub.add_argument("--against", metavar="CHECKPOINT", help="the original; the artifact's own weights without")
    sub.add_argument("--activations", metavar="FILE", help="inputs, as for export; the golden batch without")
    sub.add_argument("--device", default="auto", help="of the artifact: auto (default), cpu, cuda or cuda:N")
    return parser


def export_command(options: argparse.Namespace) -> int:
    """Export, and say in three lines what was made."""
    sae = load(options.checkpoint)
    if options.error_term is not None:
        sae.cfg.use_error_term = options.error_term
    head_shape = None
    if options.heads is not None:
        if options.heads < 1 or sae.cfg.d_in % options.heads:
            raise SAEError(f"--heads is {options.heads}; it must divide d_in = {sae.cfg.d_in}.")
        head_shape = (options.heads, sae.cfg.d_in // options.heads)
    activations = None if options.activations is None else read_activations(options.activations)
    artifact = export(sae, options.out, activations, head_shape, overwrite=options.overwrite)

    manifest = artifact.manifest
    parity = manifest.parity
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    own, original = (
        max(getattr(record, which).token for record in parity.hooks.values()) for which in ("artifact", "original")
    )
    print(f"{artifact.path}: {len(manifest.graphs)} graphs, {size:.1f} MB")
    print(
        f"parity on {parity.tokens} tokens ({manifest.golden.source}): largest error against float64 {own:.1e}, "
        f"PyTorch's own {original:.1e}"
    )
    print(f"prove it without PyTorch: python -m runtime verify {artifact.path}")
    return 0


def verify_command(options: argparse.Namespace) -> int:
    """Print the parity table."""
    sae = None if options.against is None else load(options.against)
    activations = None if options.activations is None else read_activations(options.activations)
    report = verify(options.artifact, sae, activations, options.device)
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

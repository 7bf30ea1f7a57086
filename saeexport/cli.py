"""The command line `saeexport`: export, sign, verify and inspect, and list the formats of checkpoints."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime.arrays.dtypes import FLOAT32
from runtime.artifact.budgets import FLOOR
from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import INT8
from runtime.artifact.signature import SIGNATURE
from runtime.commands.console import new_parser, run
from runtime.commands.package import PACKAGE, add_package_options
from runtime.commands.reports import add_verify_options, run_verification
from runtime.errors import SAEError
from runtime.parity.fidelity import describe_fidelity
from runtime.parity.report import Report
from runtime.tables import format_table

from ._export import export
from ._export_all import export_all, head_shape_of
from ._tree_summary import summarize
from .checkpoints.duplicates import note_duplicates
from .checkpoints.registry import FORMATS, load_for_export, read, request_of
from .checkpoints.thresholds import note_thresholds
from .grafting.graft_command import add_graft_command
from .grafting.locate_command import add_locate_command
from .original.architectures import ARCHITECTURES
from .original.selection import read_feature_ids
from .proof.activations import read_activations
from .proof.verify import verify
from .signing import sign

CHECKPOINT = "file or folder of a format that `saeexport formats` lists, or hf://OWNER/NAME[@REVISION][/PATH]"
READING = ("norm_scaling_factor", "already_folded", "normalize_activations", "transcoder", "ignore_config", "index")
"""Arguments of `load` that the command line has options for, with the names of `Request`."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code, one of `runtime.commands.console.EXIT_CODES`."""
    return run(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = new_parser("saeexport", "Export SAEs to ONNX, and verify the export against the PyTorch original.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    sub = shared = argparse.ArgumentParser(add_help=False)  # the options of `export` and `export-all`
    sub.add_argument(
        "--activations", metavar="FILE",
        help="real inputs for the proof, in a .npy, .npz or .safetensors file with one array; for export-all also a "
        "folder with a file for each artifact (default: random inputs)",
    )  # fmt: skip
    sub.add_argument(
        "--heads", type=int, metavar="N",
        help="write graphs that take (tokens, N, d_head), for hooks that end in _z (default: (tokens, d_in))",
    )  # fmt: skip
    sub.add_argument(
        "--error-term", action=argparse.BooleanOptionalAction,
        help="add the error term to the output: output = recons + error (default: the checkpoint's setting)",
    )  # fmt: skip
    sub.add_argument(
        "--hook-name", metavar="NAME",
        help="TransformerLens name of the hook that the activations come from (default: the checkpoint's)",
    )  # fmt: skip
    sub.add_argument(
        "--dtype", choices=list(FLOOR),
        help="dtype of weights and activations (default: the checkpoint's)",
    )  # fmt: skip
    sub.add_argument(
        "--weights", choices=[INT8],
        help="quantize the weights: a quarter of the bytes and faster for a few tokens on a CPU, but not at parity "
        "(default: the weights as they are)",
    )  # fmt: skip
    sub.add_argument(
        "--labels", metavar="FILE",
        help="labels of the features: labels.json of an artifact, or what Neuronpedia exports; for export-all also a "
        "folder with a file for each artifact (default: those of the checkpoint, if it is an artifact)",
    )  # fmt: skip
    sub.add_argument("--overwrite", action="store_true", help="replace an artifact at OUT")
    _add_reading(sub)

    text = "Export a checkpoint to a folder of ONNX graphs, and prove that they compute what PyTorch computes."
    sub = commands.add_parser("export", help=text, description=text, parents=[shared])
    sub.set_defaults(command=export_command)
    sub.add_argument("checkpoint", help=CHECKPOINT)
    sub.add_argument("out", help="folder to write")
    sub.add_argument(
        "--features", metavar="FILE",
        help="JSON file with a list of ids: export an SAE of these features alone (default: all features)",
    )  # fmt: skip

    text = (
        "Export every checkpoint below folders or addresses on the Hub to a tree of artifacts. Run the command again "
        "after an interruption: finished artifacts are kept. A checkpoint that fails does not stop the others."
    )
    sub = commands.add_parser("export-all", help=text.partition(". ")[0] + ".", description=text, parents=[shared])
    sub.set_defaults(command=export_all_command)
    sub.add_argument("sources", nargs="+", metavar="source", help="folder, file or hf://OWNER/NAME[@REVISION][/PATH]")
    sub.add_argument("out", help="folder for the artifacts; their relative paths are those of the checkpoints")
    sub.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")

    text = "Verify on this machine that an artifact computes what PyTorch computes; exit with 1 if it does not."
    sub = commands.add_parser("verify", help=text, description=text)
    sub.set_defaults(command=verify_command)
    sub.add_argument("artifact", help="folder with sae.json")
    sub.add_argument(
        "--against", metavar="CHECKPOINT", help="checkpoint to compare with (default: the artifact's own weights)"
    )
    sub.add_argument(
        "--activations", metavar="FILE",
        help="inputs to compare on, in a .npy, .npz or .safetensors file with one array (default: the golden batch)",
    )  # fmt: skip
    sub.add_argument(
        "--device",
        default="auto",
        help="device that runs the artifact: auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N (default: auto)",
    )
    _add_reading(sub)
    add_verify_options(sub)

    text = "Sign every file of an artifact with a private key; the signature is written to model.sig in its folder."
    sub = commands.add_parser("sign", help=text, description=text)
    sub.set_defaults(command=sign_command)
    sub.add_argument("artifact", help="folder with sae.json")
    sub.add_argument(
        "--private-key", metavar="FILE", required=True,
        help="PEM file with an elliptic curve key (P-256, P-384 or P-521), without a password",
    )  # fmt: skip
    sub.add_argument(
        "--certificate", metavar="FILE",
        help="PEM file with the certificate of the key and the intermediate ones (default: sign with the key alone)",
    )  # fmt: skip
    sub.add_argument("--overwrite", action="store_true", help="replace a signature that is there")

    add_package_options(commands.add_parser("package", help=PACKAGE, description=PACKAGE))
    add_graft_command(commands)
    add_locate_command(commands)

    text = "Print the format, architecture, config and tensors of a checkpoint or an artifact."
    sub = commands.add_parser("inspect", help=text, description=text)
    sub.set_defaults(command=inspect_command)
    sub.add_argument("checkpoint", help=CHECKPOINT)
    _add_reading(sub)

    text = "Print the checkpoint formats that can be read, with their files and architectures."
    sub = commands.add_parser("formats", help=text, description=text)
    sub.set_defaults(command=formats_command)
    return parser


def _add_reading(sub: argparse.ArgumentParser) -> None:
    """Add the options for what the caller knows about a checkpoint and its files do not hold, as `load` takes them."""
    group = sub.add_argument_group(
        "what the files of the checkpoint do not tell",
        "An option that the checkpoint does not need is refused. The manifest records them under provenance.",
    )
    group.add_argument(
        "--norm-scaling-factor", type=float, metavar="F",
        help="factor that the inputs are multiplied by, for a config that says expected_average_only_in; it is folded "
        "into the weights",
    )  # fmt: skip
    group.add_argument(
        "--already-folded", action="store_true", help="the weights of such a checkpoint already include the factor"
    )
    group.add_argument(
        "--normalize-activations", metavar="NAME", help="normalisation of the input, instead of the config's"
    )
    group.add_argument(
        "--transcoder", action=argparse.BooleanOptionalAction,
        help="whether the checkpoint is a transcoder, for formats whose files do not tell (default: the path's name)",
    )  # fmt: skip
    group.add_argument(
        "--ignore-config", action="append", default=[], metavar="KEY",
        help="ignore a key of the config whose effect is unknown; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--index", type=int, metavar="N", help="number of one SAE in a file that holds several, counted from 0"
    )


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load` that `_add_reading` added."""
    return {name: getattr(options, name) for name in READING}


def export_command(options: argparse.Namespace) -> int:
    """Export a checkpoint and print a summary of the artifact."""
    sae = load_for_export(options.checkpoint, options.dtype, hook_name=options.hook_name, **_reading(options))
    if options.error_term is not None:
        sae.cfg.use_error_term = options.error_term
    head_shape = head_shape_of(sae.cfg.d_in, options.heads)
    activations = None if options.activations is None else read_activations(options.activations)
    features = None if options.features is None else read_feature_ids(options.features)
    was_signed = (Path(options.out) / SIGNATURE).exists()
    artifact = export(
        sae, options.out, activations, head_shape,
        dtype=options.dtype, weights=options.weights, labels=options.labels, features=features,
        overwrite=options.overwrite,
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
        left_out = f", {measured.left_out} with cancellation left out" if measured.left_out else ""
        print(
            f"parity{precision} on {measured.tokens} tokens ({manifest.golden.source}{left_out}): "
            f"largest error against float64 {own:.1e}, PyTorch's own {original:.1e}"
        )
    if manifest.fidelity is not None:
        print(f"{'no parity but ' if measured is None else ''}{describe_fidelity(manifest.fidelity)}")
    if was_signed:
        print(f"the replaced artifact was signed, this one is not: saeexport sign {artifact.path} --private-key FILE")
    for note in note_thresholds(sae):
        print(note)
    print(f"prove it without PyTorch: python -m runtime verify {artifact.path}")
    return 0


def export_all_command(options: argparse.Namespace) -> int:
    """Export many checkpoints and print a summary."""
    entries = export_all(
        options.sources, options.out, activations=options.activations, labels=options.labels, heads=options.heads,
        error_term=options.error_term, dtype=options.dtype, weights=options.weights, overwrite=options.overwrite,
        dry_run=options.dry_run, hook_name=options.hook_name, **_reading(options),
    )  # fmt: skip
    print(summarize(entries, Path(options.out)))
    return 1 if any(entry.state == "failed" for entry in entries) else 0


def verify_command(options: argparse.Namespace) -> int:
    """Verify an artifact and write the report."""
    if options.against is None and request_of(**_reading(options)).record():
        raise SAEError("The options about a checkpoint need --against CHECKPOINT.")

    def compare() -> Report:
        dtype = read_artifact(options.artifact).manifest.sae.dtype
        sae = None if options.against is None else load_for_export(options.against, dtype, **_reading(options))
        activations = None if options.activations is None else read_activations(options.activations)
        return verify(options.artifact, sae, activations, options.device, public_key=options.public_key)

    return run_verification(options, compare)


def sign_command(options: argparse.Namespace) -> int:
    """Sign an artifact."""
    artifact = sign(options.artifact, options.private_key, options.certificate, overwrite=options.overwrite)
    print(f"{artifact.path} is signed. Check it: python -m runtime verify {artifact.path} --public-key FILE")
    return 0


def inspect_command(options: argparse.Namespace) -> int:
    """Print the config and the tensors of a checkpoint."""
    form, sae, notes = read(Path(options.checkpoint), request_of(**_reading(options)))
    config = {field.name: getattr(sae.cfg, field.name) for field in fields(sae.cfg) if field.name != "device"}
    lines = {"format": f"{form.TITLE}: {form.NAME}", "architecture": sae.architecture, **config}
    tensors = [
        (name, str(list(tensor.shape)), str(tensor.dtype).removeprefix("torch."), f"{tensor.nbytes:,} bytes")
        for name, tensor in sae.named_parameters()
    ]
    rows = [
        (key, "(not given)" if value in (None, "") else str(value).removeprefix("torch."))
        for key, value in lines.items()
    ]
    print(format_table(rows))
    print()
    print(format_table(tensors))
    if notes := (*notes, *note_thresholds(sae), *note_duplicates(sae)):
        print()
        print("\n".join(notes))
    return 0


def formats_command(options: argparse.Namespace) -> int:
    """Print one row per format."""
    rows = [
        (
            form.TITLE,
            form.NAME,
            "all" if set(form.ARCHITECTURES) == set(ARCHITECTURES) else ", ".join(form.ARCHITECTURES),
        )
        for form in FORMATS
    ]
    print(format_table(rows, header=("format", "files", "architectures")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

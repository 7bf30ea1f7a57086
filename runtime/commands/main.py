"""The parser of `python -m runtime`, and the dispatch to its commands."""

import argparse
from collections.abc import Callable

from ..arrays.dtypes import FLOAT32
from ..artifact.names import HOOK_NAMES
from ..devices.options import FAMILIES, PRECISIONS
from .bench import bench_command
from .console import new_parser, run
from .doctor import doctor_command
from .features import features_command
from .inspect import inspect_command
from .package import PACKAGE, add_package_options
from .report.command import report_command
from .reports import add_verify_options
from .run import run_command
from .text_columns import ROWS
from .verify import verify_command

DESCRIPTION = "Inspect, verify, run and time exported SAEs, without PyTorch."
TOKENS = (1, 8, 64, 512)
EITHER = "folder of the artifact or of the grafted host"


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code, one of `console.EXIT_CODES`."""
    return run(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = new_parser("python -m runtime", DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add_command(
        name: str, function: Callable[[argparse.Namespace], int], description: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(command=function)
        return sub

    sub = add_command(
        "inspect",
        inspect_command,
        "Print the configuration, graphs and parity record of an artifact or a grafted host.",
    )
    _add_artifact(sub, help=EITHER)

    sub = add_command(
        "verify",
        verify_command,
        "Check that this machine computes what PyTorch computed at export. The exit code is 1 if it does not.",
    )
    _add_artifact(sub, help=EITHER)
    _add_device(sub)
    add_verify_options(sub)

    sub = add_command(
        "report",
        report_command,
        "Verify an artifact, and write what it is and how its features fire as one HTML file without network.",
    )
    _add_artifact(sub)
    sub.add_argument("target", help="HTML file to write")
    sub.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    _add_device(sub)

    sub = add_command("run", run_command, "Run the SAE on a file of activations and write its hook tensors.")
    _add_artifact(sub)
    sub.add_argument("source", help=".npy file of activations, (..., d_in) or (..., n_heads, d_head)")
    sub.add_argument("target", help=".safetensors file to write, with one tensor per hook")
    sub.add_argument(
        "--hooks",
        nargs="+",
        metavar="HOOK",
        help=f"hooks to write, of {', '.join(HOOK_NAMES)} (default: all that fire in the original)",
    )
    sub.add_argument(
        "--targets",
        metavar="FILE",
        help=".npy file of the activations that a transcoder with the error term predicts, (..., d_out)",
    )
    sub.add_argument(
        "--batch", type=int, metavar="N", help="tokens to run at a time (default: as many as make 256 MiB of output)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    _add_device(sub)

    sub = add_command(
        "features",
        features_command,
        "Write the features that are on for each token or text to a Parquet file. After a stop, the same command goes "
        "on.",
    )
    _add_artifact(sub, help=f"{EITHER}; a host takes text")
    sub.add_argument(
        "source",
        help=".npy or Parquet file of activations; for a host a file with a text on each line, or a Parquet file of "
        "texts",
    )
    sub.add_argument("target", help="Parquet file to write, with the columns indices, values and l0")
    some = sub.add_mutually_exclusive_group()
    some.add_argument("--k", type=int, metavar="N", help="keep the N strongest features of each row")
    some.add_argument("--all", action="store_true", help="keep all features that are on (the default)")
    sub.add_argument(
        "--column",
        metavar="NAME",
        help="column of a Parquet file with the activations or texts (default: the one with lists, or with strings)",
    )
    sub.add_argument(
        "--keep", nargs="+", default=[], metavar="NAME", help="columns of a Parquet file to copy (default: none)"
    )
    text = sub.add_argument_group("text, for a grafted host")
    text.add_argument("--hook", metavar="NAME", help="hook of the SAE (default: the only one)")
    text.add_argument(
        "--rows",
        choices=ROWS,
        help="write a row for each text, with the largest activation of each feature over its tokens, or for each of "
        "its tokens (default: texts)",
    )
    text.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="cut texts off after N tokens (default: refuse texts that are too long)",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    _add_device(sub)

    sub = add_command("bench", bench_command, "Measure the latency and throughput of calls of several sizes.")
    _add_artifact(sub)
    sub.add_argument(
        "--hooks", nargs="+", metavar="HOOK", help="hooks to compute (default: all that the artifact computes)"
    )
    sub.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=list(TOKENS),
        metavar="N",
        help=f"numbers of tokens per call (default: {' '.join(map(str, TOKENS))})",
    )
    sub.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="how long to measure each number of tokens (default: %(default)g)",
    )
    sub.add_argument("--threads", type=int, metavar="N", help="CPU threads per call (default: one per core)")
    sub.add_argument(
        "--graphs",
        choices=FAMILIES,
        default="auto",
        help="run the CPU variants or the portable graphs (default: auto, the CPU variants on a CPU)",
    )
    sub.add_argument(
        "--cuda-graph", action="store_true", help="on a GPU, capture the launches of each call size and replay them"
    )
    _add_device(sub)

    add_package_options(commands.add_parser("package", help=PACKAGE, description=PACKAGE))

    sub = add_command("doctor", doctor_command, "Print which devices of this machine can run artifacts, or why not.")
    _add_artifact(sub, nargs="?", help="folder of one artifact to check each device for (default: any artifact)")
    return parser


def _add_artifact(
    parser: argparse.ArgumentParser, nargs: str | None = None, help: str = "folder of the artifact"
) -> None:
    parser.add_argument("artifact", nargs=nargs, help=help)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:N, tensorrt or tensorrt:N (default: auto, CUDA if it starts and else the CPU)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=FLOAT32,
        help="precision of float32 matrix products on a GPU (default: %(default)s)",
    )

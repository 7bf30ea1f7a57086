"""`python -m runtime inspect | verify | run | bench | doctor`: an artifact on a machine without PyTorch."""

import argparse

import onnxruntime
from tqdm import tqdm

from ..arrays.dtypes import FLOAT32
from ..artifact.folder import read_artifact
from ..artifact.names import HOOK_NAMES
from ..devices.options import FAMILIES, PRECISIONS
from ..errors import SAEError
from ..parity.verify import verify
from ..session.batch import select_hooks
from ..session.session import SAESession
from .bench import bench, table
from .console import run
from .doctor import diagnose
from .inspect import describe
from .stream import stream


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, or 1 if an artifact fails verification, or 2 if the command cannot be carried out."""
    return run(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str, artifact: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("artifact", nargs=artifact, help="the folder with sae.json")
        return sub

    def on_device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, tensorrt or tensorrt:N")
        sub.add_argument("--precision", choices=PRECISIONS, default=FLOAT32, help="of products on a GPU")

    command("inspect", inspect_command, "Print what an artifact is: config, graphs, hooks, parity, provenance.")

    sub = command(
        "verify", verify_command, "Prove on this machine that the artifact computes what PyTorch did; else exit 1."
    )
    on_device(sub)

    sub = command("run", run_command, "Stream activations of any size through the SAE.")
    sub.add_argument("source", help="a .npy file, (..., d_in) or (..., n_heads, d_head)")
    sub.add_argument("target", help="the .safetensors file to write, a tensor for each hook")
    sub.add_argument(
        "--hooks", nargs="+", metavar="HOOK", help=f"which: {', '.join(HOOK_NAMES)}; all that fire without"
    )
    sub.add_argument("--batch", type=int, metavar="N", help="tokens at a time; about 256 MiB of output without")
    sub.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    on_device(sub)

    sub = command("bench", bench_command, "Print latency and throughput by number of tokens.")
    sub.add_argument(
        "--hooks", nargs="+", metavar="HOOK", default=list(HOOK_NAMES), help="what is computed; all without"
    )
    sub.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 64, 512], metavar="N", help="1 8 64 512 without")
    sub.add_argument("--seconds", type=float, default=2.0, help="for each number of tokens (default 2)")
    sub.add_argument("--threads", type=int, help="of the CPU; one per core without")
    sub.add_argument("--cuda-graph", action="store_true", help="on a GPU, replay the launches of each number of tokens")
    sub.add_argument("--graphs", choices=FAMILIES, default="auto", help="cpu: written for it; portable; auto (default)")
    on_device(sub)

    command(
        "doctor", doctor_command, "Print which devices of this machine run artifacts, or this one, and why not.", "?"
    )
    return parser


def inspect_command(options: argparse.Namespace) -> int:
    """Print what an artifact is."""
    print(describe(read_artifact(options.artifact)))
    return 0


def verify_command(options: argparse.Namespace) -> int:
    """Print the parity table."""
    report = verify(options.artifact, options.device, options.precision)
    print(report)
    return 1 if report.failures else 0


def run_command(options: argparse.Namespace) -> int:
    """Stream a file, with a progress bar on a terminal."""
    with (
        SAESession(options.artifact, options.device, precision=options.precision) as session,
        tqdm(unit="token", unit_scale=True, disable=None) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        stream(session, options.source, options.target, options.hooks, options.batch, options.overwrite, progress)
    return 0


def bench_command(options: argparse.Namespace) -> int:
    """Print the timings."""
    if min(options.tokens) < 1:
        raise SAEError(f"--tokens is {min(options.tokens)}; it must be at least 1.")
    with SAESession(
        options.artifact,
        options.device,
        precision=options.precision,
        threads=options.threads,
        graphs=options.graphs,
        cuda_graph=options.tokens if options.cuda_graph else (),
    ) as session:
        hooks = select_hooks(options.hooks)
        if unknown := set(options.hooks) - set(hooks):
            raise SAEError(f"{', '.join(sorted(unknown))}: no such hook. There are {', '.join(HOOK_NAMES)}.")
        print(f"{session!r}, onnxruntime {onnxruntime.__version__}")
        print(session.explain(hooks, max(options.tokens)))
        print(table(list(tqdm(bench(session, hooks, options.tokens, options.seconds),
                              total=len(options.tokens), disable=None, leave=False))))  # fmt: skip
    return 0


def doctor_command(options: argparse.Namespace) -> int:
    """Print what this machine can run."""
    print(diagnose(None if options.artifact is None else read_artifact(options.artifact)))
    return 0

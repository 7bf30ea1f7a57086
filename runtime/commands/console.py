"""Code that both command lines share: the base parser, and how an error becomes a line on stderr and an exit code."""

import argparse
import importlib.metadata
import signal
import sys

import onnxruntime

from ..errors import SAEError

EXIT_CODES = """exit codes:
  0    success
  1    the artifact failed verification, or one of several exports failed
  2    the command could not be carried out; stderr has the reason
  130  interrupted with Ctrl-C
  143  terminated (SIGTERM)"""


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser without commands that has `--version` and lists the exit codes below its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_versions()}")
    return parser


def run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Parse the arguments, call the function that the parser set as `command`, and return the exit code.

    The exit codes are those of `EXIT_CODES`. After Ctrl-C or SIGTERM, too, partly written files are removed.
    """
    options = parser.parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        return int(options.command(options))
    except (SAEError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _versions() -> str:
    try:
        own = importlib.metadata.version("saeexport")  # the distribution that contains both packages
    except importlib.metadata.PackageNotFoundError:
        own = "(not installed)"
    return f"{own}, onnxruntime {onnxruntime.__version__}"

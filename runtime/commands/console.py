"""Code that both command lines share: the base parser, and how an error becomes a line on stderr and an exit code."""

import argparse
import contextlib
import importlib.metadata
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import onnxruntime

from ..errors import SAEError

EXIT_CODES = """exit codes:
  0    success
  1    the artifact failed verification, or one of several exports failed
  2    the command could not be carried out; stderr has the reason
  130  interrupted with Ctrl-C
  141  the reader of standard output has closed it, as in `| head -1`
  143  terminated (SIGTERM)"""

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and after SIGTERM."""


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser without commands that has `--version` and lists the exit codes below its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_versions()}")
    return parser


def run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Parse the arguments, call the function that the parser set as `command`, and return the exit code.

    The exit codes are those of `EXIT_CODES`. After Ctrl-C or SIGTERM, too, partly written files are removed. What
    standard output cannot encode is written as a backslash escape, and if it is closed, the output is discarded.
    """
    _prepare_streams()
    try:
        try:
            return _carry_out(parser, arguments)
        finally:
            sys.stdout.flush()  # when the interpreter exits, it could only print that this failed
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        print(f"error: standard output cannot be written: {error}", file=sys.stderr)
        return 2


def _carry_out(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    options = parser.parse_args(arguments)
    with _stops() as stops:
        try:
            return int(options.command(options))
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and not stops:
                stops.append(INTERRUPTED)
            if stops:  # a library may have caught what the handler raised, and failed for want of what was stopped
                print("interrupted" if stops[0] == INTERRUPTED else "terminated", file=sys.stderr)
                return stops[0]
            if not isinstance(error, (SAEError, OSError)):
                raise
            print(f"error: {error}", file=sys.stderr)
            return 2


@contextlib.contextmanager
def _stops() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end the block by an exception, and yield a list that then has the exit code.

    Where a program that calls a command handles or ignores a signal itself, that stays so; only its main thread may set
    handlers.
    """
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(INTERRUPTED if number == signal.SIGINT else TERMINATED)
        raise KeyboardInterrupt

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        defaults = {}
    ours = {number: default for number, default in defaults.items() if signal.getsignal(number) == default}
    for number in ours:
        signal.signal(number, stop)
    try:
        yield stops
    finally:
        for number, default in ours.items():
            signal.signal(number, default)


def _prepare_streams() -> None:
    """Make standard output and standard error take every text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started, and the next file would get its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Discard what standard output still holds, which Python would try to write again at exit."""
    with contextlib.suppress(OSError, ValueError):  # it is not a file of the system
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _versions() -> str:
    try:
        own = importlib.metadata.version("saeexport")  # the distribution that contains both packages
    except importlib.metadata.PackageNotFoundError:
        own = "(not installed)"
    return f"{own}, onnxruntime {onnxruntime.__version__}"

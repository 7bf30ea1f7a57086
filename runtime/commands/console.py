"""From a command's errors to a line on stderr and an exit code, for both command lines."""

import argparse
import signal
import sys

from ..errors import SAEError


def run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Parse the arguments, call the function that the parser set as `command`, and return the exit code.

    It is the command's own, or 2 if the command cannot be carried out, 130 after Ctrl-C, 143 when asked to terminate;
    after those two as well, what was half-written is gone.
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

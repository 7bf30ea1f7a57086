"""Options that the command lines of measurements have in common."""

import argparse
from collections.abc import Sequence

SHAPES = ("768x24576", "2304x16384")
ROWS = (1, 8, 64, 512)


def add_shapes(parser: argparse.ArgumentParser, default: Sequence[str] = SHAPES) -> None:
    """Add `--shapes`, the sizes of SAEs, each as `parse_shape` takes it."""
    parser.add_argument(
        "--shapes", nargs="+", default=default, metavar="D_INxD_SAE", help=f"sizes (default: {' '.join(default)})"
    )


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Add `--rows`, the numbers of tokens in one call."""
    numbers = " ".join(map(str, ROWS))
    parser.add_argument(
        "--rows", nargs="+", type=int, default=ROWS, metavar="N", help=f"rows of the input (default: {numbers})"
    )

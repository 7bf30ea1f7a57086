"""`python -m runtime features`: the features of a file of activations as a Parquet file."""

import argparse

from ..session.session import SAESession
from .columns import write_columns
from .progress import token_progress


def features_command(options: argparse.Namespace) -> int:
    """Write the features that are on for each token of a file of activations."""
    with (
        SAESession(options.artifact, options.device, precision=options.precision) as session,
        token_progress() as progress,
    ):
        write_columns(
            session, options.source, options.target, options.k, options.column, tuple(options.keep), options.overwrite,
            progress,
        )  # fmt: skip
    return 0

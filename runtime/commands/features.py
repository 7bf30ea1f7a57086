"""`python -m runtime features`: the features of a file of activations as a Parquet file."""

import argparse

from tqdm import tqdm

from ..session.session import SAESession
from .columns import write_columns


def features_command(options: argparse.Namespace) -> int:
    """Write the features that are on for each token of a file of activations."""
    with (
        SAESession(options.artifact, options.device, precision=options.precision) as session,
        tqdm(unit="token", unit_scale=True, disable=None) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_columns(
            session, options.source, options.target, options.k, options.column, tuple(options.keep), options.overwrite,
            progress,
        )  # fmt: skip
    return 0

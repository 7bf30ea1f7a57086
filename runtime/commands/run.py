"""`python -m runtime run`: a file of activations through the SAE, with a progress bar on a terminal."""

import argparse

from ..session.session import SAESession
from .progress import progress_bar
from .stream import stream


def run_command(options: argparse.Namespace) -> int:
    """Write the hook tensors of a file of activations."""
    with (
        SAESession(options.artifact, options.device, precision=options.precision) as session,
        progress_bar("token") as progress,
    ):
        stream(
            session, options.source, options.target, options.hooks, options.batch, options.overwrite, progress,
            options.targets,
        )  # fmt: skip
    return 0

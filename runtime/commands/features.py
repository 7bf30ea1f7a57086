"""`python -m runtime features`: the features of a file of activations or texts as a Parquet file."""

import argparse

from ..arrays.dtypes import FLOAT32
from ..errors import InputError
from ..hosts.folder import is_host
from ..hosts.session import HostSession
from ..session.session import SAESession
from .columns import write_columns
from .progress import progress_bar
from .text_columns import TEXTS, write_text_columns


def features_command(options: argparse.Namespace) -> int:
    """Write the features that are on for each token of a file of activations, or for each text of a file of texts."""
    keep = tuple(options.keep)
    if is_host(options.artifact):
        _refuse("--precision", options.precision != FLOAT32, "a grafted host runs in its own")
        with HostSession(options.artifact, options.device) as host, progress_bar("text") as progress:
            write_text_columns(
                host, options.source, options.target, options.hook, options.rows or TEXTS, options.k,
                options.max_length, options.column, keep, options.overwrite, progress,
            )  # fmt: skip
        return 0
    for name in ("hook", "rows", "max_length"):
        asked = getattr(options, name) is not None
        _refuse(f"--{name.replace('_', '-')}", asked, f"{options.artifact} is an SAE, which takes activations")
    with (
        SAESession(options.artifact, options.device, precision=options.precision) as session,
        progress_bar("token") as progress,
    ):
        write_columns(
            session, options.source, options.target, options.k, options.column, keep, options.overwrite, progress
        )
    return 0


def _refuse(option: str, is_given: bool, reason: str) -> None:
    if is_given:
        raise InputError(f"{option} cannot be given: {reason}. Leave it out.")

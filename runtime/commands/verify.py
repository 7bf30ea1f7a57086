"""`python -m runtime verify`: the verdicts on an artifact or a grafted host, as a table, JSON or JUnit XML."""

import argparse

from ..hosts.verify import verify
from .reports import run_verification


def verify_command(options: argparse.Namespace) -> int:
    """Write the verdicts on every graph that runs on the device; return 1 if any of them fails."""
    return run_verification(
        options, lambda: verify(options.artifact, options.device, options.precision, public_key=options.public_key)
    )

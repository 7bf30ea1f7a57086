"""`python -m runtime verify`: the parity table of an artifact."""

import argparse

from ..parity.verify import verify


def verify_command(options: argparse.Namespace) -> int:
    """Print the verdicts on every graph that runs on the device; return 1 if any of them fails."""
    report = verify(options.artifact, options.device, options.precision)
    print(report)
    return 1 if report.failures else 0

"""`python -m runtime report`: an artifact as one HTML file."""

import argparse
import os
import sys
from pathlib import Path

from ...artifact.writing import check_output_file, replaced_file
from ...errors import ArtifactError, IntegrityError
from ...hosts.folder import is_host, read_host
from ...parity.golden import load_golden
from ...parity.report import Report
from ...parity.verify import judge_session, open_verified, read_intact
from .measure import measure
from .page import report_page


def report_command(options: argparse.Namespace) -> int:
    """Verify an artifact, and write its report; return 1 if it fails the verification, which the report shows."""
    target = Path(os.path.realpath(options.target))
    check_output_file(target, options.overwrite)
    _refuse_host(options.artifact)
    artifact = read_intact(options.artifact)
    if isinstance(artifact, Report):
        raise IntegrityError("\n".join(artifact.problems))
    with open_verified(artifact, options.device, options.precision) as session:
        golden = load_golden(artifact, options.precision)
        report = judge_session(session, golden)
        page = report_page(artifact, report, measure(session, golden.clean), session.labels)
    with replaced_file(target, options.overwrite) as file:
        file.write(page)
    for failure in report.failures:
        print(f"FAIL: {failure}", file=sys.stderr)
    return 1 if report.failures else 0


def _refuse_host(path: str) -> None:
    """Refuse a grafted host, and name the folders of its SAEs.

    Raises:
        ArtifactError: The path is a grafted host.
    """
    if is_host(path):
        saes = "\n".join(f"  {os.path.join(path, sae.folder)}" for sae in read_host(path).manifest.saes)
        raise ArtifactError(
            f"{path} is a grafted host, and a report is about one SAE. Give the folder of one of its SAEs:\n{saes}"
        )

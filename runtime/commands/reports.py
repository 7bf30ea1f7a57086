"""The result of a verification for people and for CI systems: a table, JSON, or JUnit XML.

Source: https://github.com/testmoapp/junitxml, and junit-10.xsd of Jenkins' xUnit plugin
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..artifact.manifest import Errors
from ..errors import SAEError
from ..parity.report import Report, Verdict
from ..parity.versions import differing_versions, installed_versions

TABLE, JSON, JUNIT = FORMATS = ("table", "json", "junit")
SCHEMA = 1
"""Version of the JSON document. A release that changes the meaning of a key, or removes one, raises it."""

NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a `verify` command ends with.

    Attributes:
        path: The artifact, as it was given.
        report: The report; None if the command could not be carried out.
        error: The reason why it could not be carried out; "" if it was.
        seconds: How long it took.
    """

    path: str
    report: Report | None
    error: str
    seconds: float

    @property
    def exit_code(self) -> int:
        """The exit code of the command, one of `console.EXIT_CODES`."""
        return 2 if self.report is None else 1 if self.report.failures else 0


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both `verify` commands have: the signature to ask for, and those of `run_verification`."""
    parser.add_argument(
        "--public-key",
        "--certificate",
        metavar="FILE",
        help="PEM file with the key, or the certificate of the authority, that the artifact must be signed with",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=TABLE,
        help="table to read, json, or junit, the XML that CI systems show (default: %(default)s)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="show each output of each graph (default: each output where it is worst)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write the result to FILE, and the table to stdout (default: to stdout)"
    )


def run_verification(options: argparse.Namespace, verify: Callable[[], Report]) -> int:
    """Call `verify`, write its report in the format of the options, and return the exit code.

    JSON and JUnit documents are written when `verify` fails with an error, too; the error is raised in any case.
    """
    start = time.perf_counter()
    report, failed = None, None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a library prints is not part of the document
            report = verify()
    except (SAEError, OSError) as error:
        failed = error
    outcome = Outcome(str(options.artifact), report, str(failed or ""), time.perf_counter() - start)
    if options.output is not None:
        if report is not None:
            print(format_outcome(outcome, TABLE, options.all))
        if report is not None or options.format != TABLE:
            Path(options.output).write_text(format_outcome(outcome, options.format, options.all) + "\n", "utf-8")
    elif report is not None or options.format != TABLE:
        print(format_outcome(outcome, options.format, options.all))
    if failed is not None:
        raise failed
    return outcome.exit_code


def format_outcome(outcome: Outcome, format: str, every_graph: bool = False) -> str:
    """Return an outcome in one of `FORMATS`; JSON and XML consist of ASCII characters only.

    The table has a row for each output, or with `every_graph` for each output of each graph, as the documents always
    have.
    """
    if format == JSON:
        return json.dumps(as_json(outcome), indent=2, allow_nan=False)
    if format == JUNIT:
        tree = as_junit(outcome)
        ElementTree.indent(tree)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(tree, "us-ascii").decode("ascii")
    report = outcome.report
    assert report is not None
    return str(report) if every_graph else report.summary()


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as the document that `docs/verifying.md` describes."""
    report = outcome.report or Report("")
    artifact = report.artifact
    return {
        "schema": SCHEMA,
        "passed": outcome.exit_code == 0,
        "exit_code": outcome.exit_code,
        "error": _printable(outcome.error) or None,
        "path": _printable(outcome.path),
        "manifest_sha256": report.sha256 or None,
        "weights_sha256": artifact.manifest.files[artifact.manifest.weights].sha256 if artifact else None,
        "judged_by": _judged_by(report),
        "device": report.device or None,
        "tokens": report.tokens,
        "seconds": round(outcome.seconds, 3),
        "versions": _versions(report),
        "verdicts": [_verdict(verdict) for verdict in report.verdicts],
        "problems": [_printable(problem) for problem in report.problems],
        "skipped": [{"graph": graph, "reason": reason} for graph, reason in report.skipped.items()],
    }


def _judged_by(report: Report) -> str | None:
    if not report.sha256:
        return None
    return "fidelity" if report.artifact and not report.artifact.manifest.parity else "parity"


def as_junit(outcome: Outcome) -> ElementTree.Element:
    """Return an outcome as a test suite with a test case for each output of each graph."""
    report = outcome.report or Report("")
    name = f"sae-artifact.{in_xml(os.path.basename(os.path.abspath(outcome.path)))}"
    cases = [_case(f"{name}.{verdict.graph}", verdict.hook, verdict.failures, verdict) for verdict in report.verdicts]
    for graph, reason in report.skipped.items():
        cases.append(case := _case(name, graph))
        ElementTree.SubElement(case, "skipped", message=in_xml(reason))
    if report.problems:
        cases.append(_case(name, "artifact", tuple(report.problems)))
    if outcome.report is None:
        cases.append(case := _case(name, "artifact"))
        _explain(ElementTree.SubElement(case, "error", type="error"), outcome.error)
    counts = {
        "tests": str(len(cases)),
        **{what: str(sum(case.find(tag) is not None for case in cases))
           for what, tag in (("failures", "failure"), ("errors", "error"))},
        "time": f"{outcome.seconds:.3f}",
    }  # fmt: skip
    suites = ElementTree.Element("testsuites", {"name": "sae-artifact", **counts})
    skipped = str(sum(case.find("skipped") is not None for case in cases))
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, **counts, "skipped": skipped})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _facts(as_json(outcome)):
        ElementTree.SubElement(properties, "property", name=key, value=in_xml(value))
    suite.extend(cases)
    return suites


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a JUnit document says about the artifact as a whole."""
    names = ("path", "manifest_sha256", "weights_sha256", "judged_by", "device", "tokens")
    made, here = document["versions"]["artifact"], document["versions"]["here"]
    return [
        *((name, str(document[name])) for name in names if document[name]),
        *(
            (f"made with {package}", f"{version}{_here(version, here.get(package))}")
            for package, version in made.items()
        ),
    ]


def _here(version: str, here: str | None) -> str:
    return "" if here in (None, version) else f", here {here}"


def _versions(report: Report) -> dict[str, Any]:
    made = report.made_with
    return {"artifact": dict(made), "here": installed_versions(made), "differing": differing_versions(made)}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    errors, budget = verdict.errors, verdict.budget
    return {
        "graph": verdict.graph,
        "hook": verdict.hook,
        "passed": not verdict.failures,
        "token_error": _number(errors, "token"),
        "token_budget": _number(budget, "token"),
        "element_error": _number(errors, "element"),
        "element_budget": _number(budget, "element"),
        "failures": [_printable(failure) for failure in verdict.failures],
        "note": verdict.note,
    }


def _number(errors: Errors | None, kind: str) -> float | None:
    """Return one of the errors; None if there is none, or if it is infinite, which JSON cannot hold."""
    value = math.inf if errors is None else getattr(errors, kind)
    return value if math.isfinite(value) else None


def _case(group: str, name: str, failures: tuple[str, ...] = (), verdict: Verdict | None = None) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": in_xml(group), "name": in_xml(name)})
    if failures:
        _explain(ElementTree.SubElement(case, "failure", type="failure"), "\n".join(failures))
    if verdict is not None and verdict.errors and verdict.budget:
        ElementTree.SubElement(case, "system-out").text = verdict.describe_errors()
    return case


def _explain(element: ElementTree.Element, text: str) -> None:
    element.set("message", in_xml(text.split("\n")[0]))
    element.text = in_xml(text)


def _printable(text: str) -> str:
    r"""Return the text with `\udcXX` for bytes of a path that are not UTF-8, which no document may hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_xml(text: str) -> str:
    r"""Return the text with `\xXX` for characters that XML cannot hold in any form."""
    return NOT_IN_XML.sub(lambda found: f"\\x{ord(found[0]):02x}", text)

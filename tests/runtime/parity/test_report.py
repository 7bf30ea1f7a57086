"""The report of a verification: which row stands for an output, and what is below the table."""

import math

import pytest

from runtime import ParityError, read_artifact
from runtime.artifact.manifest import Errors
from runtime.parity import versions
from runtime.parity.report import Report, Verdict
from tests.support.samples import TINY

SMALL = Errors(0.25, 0.5)


def verdict(graph, token=None, element=None, budget=SMALL, failures=(), note="", hook="recons"):
    errors = None if token is None else Errors(token, element)
    return Verdict(graph, hook, errors, budget, tuple(failures), note)


@pytest.mark.parametrize(("errors", "budget", "used"), [
    (Errors(0.125, 0.125), SMALL, 0.5), (Errors(0.0, 0.375), SMALL, 0.75), (Errors(0.0, 0.0), Errors(0.0, 0.0), 0.0),
    (Errors(0.1, 0.0), Errors(0.0, 1.0), math.inf), (None, SMALL, 0.0), (SMALL, None, 0.0), (None, None, 0.0),
])  # fmt: skip
def test_the_share_of_the_budget_that_is_used(errors, budget, used):
    assert Verdict("model", "recons", errors, budget).used == used


def test_errors_are_described_with_their_budgets():
    assert verdict("model", 0.125, 0.25).describe_errors() == (
        "token error 1.250e-01 of 2.500e-01, element error 2.500e-01 of 5.000e-01"
    )
    for exact in (verdict("model"), verdict("model", 0.1, 0.1, None), verdict("model", budget=None)):
        assert exact.describe_errors() == "exact"


def test_the_table_has_a_row_for_each_verdict():
    report = Report("title", [
        verdict("model", 0.125, 0.25, note="(a note)"), verdict("acts", budget=None),
        verdict("features", failures=["no"]),
        verdict("steer", 0.5, 0.25, failures=["too large"]), verdict("decode", 0.125, 0.25, budget=None),
    ], ["a problem"])  # fmt: skip
    assert (
        str(report)
        == """\
title
graph     output  token error  budget    element error  budget    verdict
--------  ------  -----------  --------  -------------  --------  -----------
model     recons  1.25e-01     2.50e-01  2.50e-01       5.00e-01  ok (a note)
acts      recons  exact        exact     exact          exact     ok
features  recons  -            -         -              -         FAIL
steer     recons  5.00e-01     2.50e-01  2.50e-01       5.00e-01  FAIL
decode    recons  exact        exact     exact          exact     ok
FAIL: a problem
FAIL: no
FAIL: too large"""
    )
    assert report.failures == ["a problem", "no", "too large"]
    with pytest.raises(ParityError) as error:
        report.raise_for_failures()
    assert str(error.value) == "title\n- a problem\n- no\n- too large"


def test_the_summary_has_the_graph_in_which_an_output_is_worst():
    report = Report("title", [
        verdict("model", 0.125, 0.25), verdict("steer", 0.0, 0.375), verdict("decode", 0.1, 0.1),
        verdict("model", 0.0, 0.0, hook="error"), verdict("steer", hook="error", failures=["no"]),
        verdict("model", 0.24, 0.4, hook="error"),
    ])  # fmt: skip
    assert (
        report.summary()
        == """\
title
output  graphs  worst graph  token error  budget    element error  budget    verdict
------  ------  -----------  -----------  --------  -------------  --------  -------
recons  3       steer        0.00e+00     2.50e-01  3.75e-01       5.00e-01  ok
error   3       steer        -            -         -              -         FAIL
FAIL: no"""
    )


def test_without_verdicts_there_is_no_table():
    assert str(Report("title")) == Report("title").summary() == "title"
    Report("title").raise_for_failures()


def test_a_report_knows_what_made_its_artifact(monkeypatch):
    artifact = read_artifact(TINY)
    report = Report("title", artifact=artifact)
    assert report.made_with == artifact.manifest.provenance
    assert report.sha256 == artifact.sha256
    assert (Report("title", made_with={"a": "1"}, sha256="x").made_with, Report("title").sha256) == ({"a": "1"}, "")


def test_versions_that_differ_are_named():
    import numpy
    import onnxruntime

    same = {"numpy": numpy.__version__, "onnxruntime": onnxruntime.__version__}
    assert versions.installed_versions([*same, "no-such-package"]) == same
    assert versions.installed_versions(["onnxruntime-gpu"]) == {"onnxruntime-gpu": onnxruntime.__version__}
    assert versions.differing_versions({**same, "no-such-package": "1"}) == []
    assert Report("title", made_with=same).differing_versions == ""
    made_with = {**same, "numpy": "0.1"}
    assert versions.differing_versions(made_with) == ["numpy"]
    assert str(Report("title", made_with=made_with)) == (
        f"title\nmade with other versions: numpy 0.1 (here {numpy.__version__})"
    )

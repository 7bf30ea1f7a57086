"""The result of a verification: one verdict per output of each graph, printed as a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..artifact.folder import Artifact
from ..artifact.manifest import Errors
from ..errors import ParityError
from ..tables import format_table
from .versions import describe_differences

NUMBERS = ("token error", "budget", "element error", "budget", "verdict")
HEADER = ("graph", "output", *NUMBERS)
SUMMARY = ("output", "graphs", "worst graph", *NUMBERS)


@dataclass(frozen=True)
class Verdict:
    """The result for one output of one graph.

    Attributes:
        graph: Name of the graph.
        hook: Name of the output.
        errors: Measured errors; None if the output is compared exactly, or could not be measured.
        budget: The largest errors that are allowed; None if `errors` is None.
        failures: Every reason to fail, as sentences; empty if the output passes.
        note: A remark for the table, in parentheses.
    """

    graph: str
    hook: str
    errors: Errors | None
    budget: Errors | None
    failures: tuple[str, ...] = ()
    note: str = ""

    @property
    def used(self) -> float:
        """The larger share of its budget that an error takes: 1 is all of it. An exact output has 0."""
        if self.errors is None or self.budget is None:
            return 0.0
        pairs = ((self.errors.token, self.budget.token), (self.errors.element, self.budget.element))
        return max(0.0 if error == 0 else error / budget if budget else math.inf for error, budget in pairs)

    def describe_errors(self) -> str:
        """Return the errors with their budgets, or "exact" if the output is compared exactly."""
        if not self.errors or not self.budget:
            return "exact"
        return ", ".join(
            f"{kind} error {getattr(self.errors, kind):.3e} of {getattr(self.budget, kind):.3e}"
            for kind in ("token", "element")
        )


@dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
        title: What was verified, on which device and on how many tokens.
        verdicts: One verdict per output of each graph that was run.
        problems: Failures that belong to no output, as sentences, such as a file that is missing.
        skipped: Why a graph was not run, for each graph that was not.
        artifact: The artifact that was verified; None if it could not be opened, or if a grafted host was verified.
        device: Name of the device; "" if nothing was run.
        tokens: Number of tokens; 0 if nothing was run.
        made_with: Versions of the software that made what was verified, by name; taken from the artifact.
        sha256: The sha256 of the manifest; taken from the artifact.
    """

    title: str
    verdicts: list[Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    artifact: Artifact | None = None
    device: str = ""
    tokens: int = 0
    made_with: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.artifact is not None:
            object.__setattr__(self, "made_with", self.artifact.manifest.provenance)
            object.__setattr__(self, "sha256", self.artifact.sha256)

    @property
    def failures(self) -> list[str]:
        """Every reason to fail, as sentences; empty if everything passed."""
        return [*self.problems, *(failure for verdict in self.verdicts for failure in verdict.failures)]

    def raise_for_failures(self) -> None:
        """Raise an error that lists every failure, if there is one.

        Raises:
            ParityError: Something failed.
        """
        if self.failures:
            raise ParityError(self._below(self.title, "- "))

    def __str__(self) -> str:
        """Return the title, the table of verdicts, and below it the failures and the versions that differ."""
        return self._with_table(HEADER, [(verdict.graph, verdict.hook, *_cells(verdict)) for verdict in self.verdicts])

    def summary(self) -> str:
        """Return the report with one row for each output: that of the graph in which it is worst."""
        outputs: dict[str, list[Verdict]] = {}
        for verdict in self.verdicts:
            outputs.setdefault(verdict.hook, []).append(verdict)
        rows = []
        for name, verdicts in outputs.items():
            worst = max(verdicts, key=lambda verdict: (bool(verdict.failures), verdict.used))
            rows.append((name, str(len(verdicts)), worst.graph, *_cells(worst)))
        return self._with_table(SUMMARY, rows)

    def _with_table(self, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
        table = f"\n{format_table(rows, header=header, rule=True)}" if rows else ""
        return self._below(f"{self.title}{table}", "FAIL: ")

    def _below(self, text: str, mark: str) -> str:
        """Return the text, and below it a line for each failure and one for versions that differ."""
        lines = [text, *(f"{mark}{failure}" for failure in self.failures), self.differing_versions]
        return "\n".join(line for line in lines if line)

    @property
    def differing_versions(self) -> str:
        """A sentence about the packages that have another version here than at export; "" if none does."""
        return describe_differences(self.made_with)


def count(n: int, noun: str) -> str:
    """Return a number with its noun: "1 token", "3 tokens"."""
    return f"{n} {noun}{'s' * (n != 1)}"


def and_more(n: int) -> str:
    """Return what follows the first example of several failures: " (and 3 more like it)", or nothing if `n` is 0."""
    return f" (and {n} more like it)" if n else ""


def _cells(verdict: Verdict) -> tuple[str, ...]:
    cells = ["exact"] * 4
    if verdict.errors and verdict.budget:
        errors, budget = verdict.errors, verdict.budget
        values = (errors.token, budget.token, errors.element, budget.element)
        cells = [f"{value:.2e}" for value in values]
    elif verdict.failures:
        cells = ["-"] * 4
    outcome = "FAIL" if verdict.failures else "ok"
    return (*cells, f"{outcome} {verdict.note}".strip())

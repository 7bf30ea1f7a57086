"""What a verification found: a verdict for each output of each graph, as a table and as words."""

from dataclasses import dataclass, field

from ..artifact.manifest import Errors
from ..errors import ParityError


@dataclass(frozen=True)
class Verdict:
    """One output of one graph: its error, what it was allowed, and every reason why it fails (none if it passes)."""

    graph: str
    hook: str
    errors: Errors | None
    budget: Errors | None
    failures: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The verdicts of a verification, and what failed beside them."""

    title: str
    verdicts: list[Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Every reason to fail, in words."""
        return [*self.problems, *(failure for verdict in self.verdicts for failure in verdict.failures)]

    def raise_for_failures(self) -> None:
        """Raise a ParityError with the table and every reason, if there is one."""
        if self.failures:
            raise ParityError(f"{self.title}\n" + "\n".join(f"- {failure}" for failure in self.failures))

    def __str__(self) -> str:
        """Return the table, and the failures below it."""
        head = ("graph", "hook", "token error", "budget", "element error", "budget", "verdict")
        rows: list[tuple[str, ...]] = [head]
        for verdict in self.verdicts:
            cells = ["exact", "exact", "exact", "exact"]
            if verdict.errors and verdict.budget:
                pairs = (
                    (verdict.errors.token, verdict.budget.token),
                    (verdict.errors.element, verdict.budget.element),
                )
                cells = [f"{number:.2e}" for pair in pairs for number in pair]
            elif verdict.failures:
                cells = ["-"] * 4
            outcome = "FAIL" if verdict.failures else "ok"
            rows.append((verdict.graph, verdict.hook, *cells, f"{outcome} {verdict.note}".strip()))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        failures = [f"FAIL: {failure}" for failure in self.failures]
        return "\n".join([self.title, *lines, *failures])

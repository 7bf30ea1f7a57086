"""What can come of an action, and the table that counts it."""

from runtime.tables import format_table

DONE, REFUSED, WRONG, HUNG, LEAKED = OUTCOMES = ("done", "refused", "wrong", "hung", "leaked")
FAILURES = (WRONG, HUNG, LEAKED)
SHOWN = 40
"""Number of failures whose description is kept."""


class Wrong(Exception):  # noqa: N818
    """A result is not what it should be."""


class Leaked(Exception):  # noqa: N818
    """Something is left that should be gone."""


class Table:
    """The number of actions of each kind, by outcome, and a description of each failure."""

    def __init__(self):
        self.counts = {}
        self.failures = []

    def add(self, kind, outcome, detail=""):
        self.counts.setdefault(kind, dict.fromkeys(OUTCOMES, 0))[outcome] += 1
        if outcome in FAILURES and len(self.failures) < SHOWN:
            self.failures.append(f"{outcome}: {detail}")

    def total(self, *outcomes):
        return sum(row[outcome] for row in self.counts.values() for outcome in outcomes)

    def __str__(self):
        rows = [(kind, *(f"{row[outcome]:,}" for outcome in OUTCOMES)) for kind, row in sorted(self.counts.items())]
        total = ("total", *(f"{self.total(outcome):,}" for outcome in OUTCOMES))
        return format_table([*rows, total], header=("kind", *OUTCOMES), right={1, 2, 3, 4, 5})

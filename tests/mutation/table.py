"""The table of the mutants of each module, from the file of results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "mutants.json"
HEADS = ("module", "mutants", "noticed by a test", "equivalent", "alive")


def table(result: Mapping[str, Any]) -> str:
    """Return the numbers of mutants as a Markdown table."""
    rows = [[f"`{module}`", *map(str, numbers)] for module, numbers in counted(result).items()]
    total = [str(sum(column)) for column in zip(*counted(result).values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([*HEADS], ["---"] * len(HEADS), *rows, ["all", *total]))


def counted(result: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the numbers of the columns by module."""
    return {
        module: [line["mutants"], line["mutants"] - line["equivalent"] - len(line["alive"]), line["equivalent"],
                 len(line["alive"])]
        for module, line in result["modules"].items()
    }  # fmt: skip

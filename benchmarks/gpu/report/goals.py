"""The speeds that this project aims for on a GPU, and whether a run reached them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.contenders.names import ORIGINAL

Line = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A value that the median of lines of the grid must reach.

    Attributes:
        text: The goal in words.
        least: The smallest value that reaches it.
        applies: Whether the goal applies to a line with this number of rows.
        value: Returns median and quartiles of a line, or None if they were not measured.
    """

    text: str
    least: float
    applies: Callable[[int], bool]
    value: Callable[[Line], list[float] | None]


def ratio_of(line: Line, name: str) -> list[float] | None:
    """Return a contender's time divided by this project's.

    For one row the host's clock counts, because one row is a question of latency. For more rows the device's clock
    counts, because they are a question of throughput: calls are queued, and the host does not wait.
    """
    return line["wall_ratios" if line["rows"] == 1 else "ratios"].get(name)


GOALS = (
    Goal("at least 2.5 times as fast as the PyTorch original with the error term", 2.5, lambda rows: True,
         lambda line: ratio_of(line, ORIGINAL)),
    Goal("at least 1.1 times as fast as torch.compile in the same precision", 1.1, lambda rows: True,
         lambda line: ratio_of(line, "compile")),
    Goal("at least 0.80 of the limit at 1024 rows and more", 0.8, lambda rows: rows >= 1024,
         lambda line: line.get("of_limit")),
    Goal("at one row with CUDA graphs at least 3 times as fast as the PyTorch original", 3.0, lambda rows: rows == 1,
         lambda line: ratio_of(line, ORIGINAL) if "this_graph" in line["ms"] else None),
)  # fmt: skip


def verdicts(lines: Sequence[Line]) -> list[tuple[Goal, Line, list[float] | None, str]]:
    """Return each goal with each line that it applies to: the measured value, and yes, no or not measured."""
    found = []
    for goal in GOALS:
        for line in lines:
            if "skipped" in line or not goal.applies(line["rows"]):
                continue
            value = goal.value(line)
            verdict = "not measured" if value is None else "yes" if value[0] >= goal.least else "no"
            found.append((goal, line, value, verdict))
    return found

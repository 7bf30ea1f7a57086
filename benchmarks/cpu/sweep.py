"""The graph that the session chooses compared with the dense one, at every sparsity."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.cpu.contenders.names import MODEL_GRAPH, THIS
from benchmarks.cpu.contenders.uses import ALL_HOOKS
from benchmarks.cpu.speed import Effort, measure_case

L0S = (0, 10, 50, 200, 1000, 4000)
LARGEST_RATIO = 1.05
"""The largest time of the session's choice, divided by that of the dense graph, that is accepted at any sparsity."""


def default_l0s(d_sae: int) -> list[int]:
    """Return the values of L0 that are measured."""
    return sorted({l0 for l0 in L0S if l0 < d_sae / 2} | {d_sae // 2, d_sae})


def measure_sweep(
    d_in: int, d_sae: int, l0s: Sequence[int], rows: Sequence[int], effort: Effort
) -> Iterator[dict[str, object]]:
    """Yield a line of results for each L0 and number of rows."""
    for l0 in l0s:
        yield from measure_case(d_in, d_sae, l0, "realistic", rows, {ALL_HOOKS: [MODEL_GRAPH, THIS]}, effort)


def slowest(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the line where the session's choice is slowest, compared with the dense graph."""
    return max(lines, key=lambda line: line[f"over_{MODEL_GRAPH}"][THIS][0])

"""Every sparsity: the graph that the session chooses beside the dense one, from no feature on to all of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.cpu.contenders import MODEL_GRAPH, THIS
from benchmarks.cpu.speed import Effort, measure_case

L0S = (0, 10, 50, 200, 1000, 4000)
WORST = 1.05
"""How much more time than the dense graph the session's choice may take, at any sparsity."""


def l0s_of(d_sae: int) -> list[int]:
    """Return the numbers of features on that are measured."""
    return sorted({l0 for l0 in L0S if l0 < d_sae / 2} | {d_sae // 2, d_sae})


def measure_sweep(
    d_in: int, d_sae: int, l0s: Sequence[int], rows: Sequence[int], effort: Effort
) -> Iterator[dict[str, object]]:
    """Yield a line of results for each number of features on and of rows."""
    for l0 in l0s:
        yield from measure_case(d_in, d_sae, l0, "realistic", rows, [MODEL_GRAPH, THIS], effort)


def worst(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the line where the session's choice is slowest beside the dense graph."""
    return max(lines, key=lambda line: line[f"over_{MODEL_GRAPH}"][THIS][0])

"""The table of the hosts that were tried, from the file of results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "hosts.json"
COMMAND = "make test-hosts RECORD=1"

HEADS = (
    "exporter", "models", "opset", "dtype", "past key values", "hooks without a value", "largest error",
    "nearest other", "graft",
)  # fmt: skip


def table(content: Mapping[str, Any]) -> str:
    """Return the table of a file of results, with one row for the models that gave the same."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in content["rows"]:
        cells = (row["exporter"], row["opset"] or "", row["dtype"], "yes" if row["cache"] else "no", row["graft"])
        groups.setdefault((*cells, tuple(row["refused"])), []).append(row)
    lines = [
        f"| {' | '.join(HEADS)} |",
        "|" + "---|" * len(HEADS),
    ]
    for (exporter, opset, dtype, cache, outcome, refused), rows in groups.items():
        models = ", ".join(row["model"] for row in rows)
        none = "all" if refused and not any(row["found"] for row in rows) else ", ".join(refused) or "none"
        error = max(row["error"] for row in rows)
        other = min(row["other"] for row in rows)
        cells = [f"`{exporter}`", models, *((opset, dtype, cache, none) if opset else ("", "", "", ""))]
        cells += [f"{error:.0e}", f"{other:.0e}"] if other else ["", ""]
        lines.append("| " + " | ".join(map(str, [*cells, outcome])) + " |")
    listed = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    return "\n".join([*lines, "", f"Made by `{COMMAND}` with {listed}."])

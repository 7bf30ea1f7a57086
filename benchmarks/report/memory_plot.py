"""The plot of the memory by kind of call, from the file of results: `python -m benchmarks.report.memory_plot`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.report import axes as draw
from benchmarks.shared.machine import RESULTS as FOLDER

RESULTS = FOLDER / "memory.json"
WAYS = {
    "whole_bytes": ("shared_stages=False", draw.ORANGE),
    "without_arena_bytes": ("arena=False", draw.LIGHT_BLUE),
    "bytes": ("default options", draw.BLACK),
}
"""The keys of a line of the results, and how each is drawn; those that were not measured are left out."""


def main() -> None:
    """Draw the plot of the stored results."""
    plot(json.loads(RESULTS.read_text())["rows"], RESULTS.with_suffix(".png"))


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the memory of the first size, divided by the weights, with a panel for each number of rows."""
    first = (lines[0]["d_in"], lines[0]["d_sae"])
    shown = [line for line in lines if (line["d_in"], line["d_sae"]) == first]
    calls = list(dict.fromkeys(line["call"] for line in shown))
    counts = sorted({line["rows"] for line in shown})
    ways = {key: style for key, style in WAYS.items() if key in shown[0]}
    figure, axes = draw.make_panels(len(counts), max(2.4 * len(counts), 5))
    height = 0.8 / len(ways)
    for axis, count in zip(axes, counts, strict=True):
        by_call = {line["call"]: line for line in shown if line["rows"] == count}
        for i, (key, (label, color)) in enumerate(ways.items()):
            places = [place + (len(ways) / 2 - 0.5 - i) * height for place in range(len(calls))]
            ratios = [by_call[call][key] / by_call[call]["weights_bytes"] for call in calls]
            axis.barh(places, ratios, height, color=color, label=label)
        axis.set_title(f"{count} row{'s' if count > 1 else ''}", fontsize="medium")
        axis.set_yticks(range(len(calls)), calls)
        axis.xaxis.set_major_locator(draw.whole_numbers())
        axis.grid(axis="x", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    handles, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles=handles[::-1], loc="outside lower center", ncols=len(ways), frameon=False)
    figure.suptitle(
        f"Anonymous memory of a process over the size of the weights, after one kind of call after the other\n"
        f"SAE of {first[0]} x {first[1]}",
        fontsize="medium",
    )
    draw.save(figure, path, dpi=160)


if __name__ == "__main__":
    main()

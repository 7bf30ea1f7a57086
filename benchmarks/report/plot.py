"""The plot of the CPU results: time over the floor by number of rows, a line per contender, a panel per size."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.contenders.names import (
    COMPILED,
    CONTENDERS,
    DEDUPLICATED,
    FLOOR,
    ORIGINAL,
    ORIGINAL_WITHOUT_ERROR,
    PLAIN_ONNX,
    THIS,
)
from benchmarks.report import axes as draw

STYLES: dict[str, dict[str, Any]] = {
    ORIGINAL: {"color": draw.VERMILION, "marker": "o"},
    ORIGINAL_WITHOUT_ERROR: {"color": draw.ORANGE, "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    DEDUPLICATED: {"color": draw.PURPLE, "marker": "s"},
    COMPILED: {"color": draw.LIGHT_BLUE, "marker": "^"},
    PLAIN_ONNX: {"color": draw.GREEN, "marker": "D"},
    THIS: {"color": draw.BLACK, "marker": "o", "linewidth": 2.5},
}
LABEL_GAP = 0.055
"""The smallest distance between two labels, as a fraction of the height of an axis."""

Line = dict[str, Any]  # a line of the results, as in the JSON file
OVER_FLOOR = f"over_{FLOOR}"


def plot(lines: list[Line], path: Path) -> None:
    """Draw the lines of the grid. If a size has several constructions, only the realistic one is drawn."""
    panels: dict[tuple[int, int, str], list[Line]] = {}
    for line in lines:
        panels.setdefault((line["d_in"], line["d_sae"], line["frequencies"]), []).append(line)
    sizes = {(d_in, d_sae): frequencies for d_in, d_sae, frequencies in sorted(panels, reverse=True)}
    shown = {key: panel for key, panel in panels.items() if sizes[key[:2]] == key[2]}
    figure, axes = draw.make_panels(len(shown), 6.4 * len(shown))
    for axis, (key, panel) in zip(axes, shown.items(), strict=True):
        draw_contenders(axis, panel)
        axis.set_title(f"{key[0]} x {key[1]}, mean L0 about {panel[0]['l0_wanted']:.0f} ({key[2]})")
    axes[0].set_ylabel("time over the floor")
    # All panels have the same limits, which are set before the labels are moved apart within them.
    drawn = [line[OVER_FLOOR] for panel in shown.values() for line in panel]
    top = max(ratios[name][0] for ratios in drawn for name in STYLES if name in ratios)
    low = min(min(ratios.get(THIS, [1])) for ratios in drawn)
    axes[0].set_ylim(min(0.8, 0.85 * low), 1.3 * top)
    for axis, panel in zip(axes, shown.values(), strict=True):
        label_lines(axis, panel[-1])
    draw.save(figure, path)


def draw_contenders(axis: Any, lines: list[Line]) -> None:
    """Draw the contenders of one SAE."""
    for name, style in STYLES.items():
        points = [(line["rows"], *line[OVER_FLOOR][name]) for line in lines if name in line[OVER_FLOOR]]
        draw.draw_line(axis, points, **{"linewidth": 1.5, "markersize": 5, **style})
    axis.axhline(1, color="grey", linewidth=1, linestyle=":")
    draw.set_log_axes(axis, [line["rows"] for line in lines], [0.5, 1, 2, 4, 8, 16, 32, 64])
    axis.spines[["top", "right"]].set_visible(False)


def label_lines(axis: Any, last: Line) -> None:
    """Write each contender's name beside the end of its line; labels that would overlap are moved apart."""
    ends = {name: last[OVER_FLOOR][name][0] for name in STYLES if name in last[OVER_FLOOR]} | {FLOOR: 1.0}
    low, high = np.log(axis.get_ylim())
    names = sorted(ends, key=lambda name: ends[name])
    heights = move_apart([(np.log(ends[name]) - low) / (high - low) for name in names])
    for name, height in zip(names, heights, strict=True):
        axis.annotate(
            "floor: encoder product and copies" if name == FLOOR else CONTENDERS[name].title,
            (1.01, height),
            xycoords="axes fraction",
            va="center",
            color=STYLES[name]["color"] if name in STYLES else "grey",
            fontweight="bold" if name == THIS else "normal",
            annotation_clip=False,
        )


def move_apart(heights: list[float]) -> list[float]:
    """Return ascending heights moved at least `LABEL_GAP` apart, as far up as down."""
    groups: list[tuple[float, int]] = []  # the middle and the size of each group of labels that touch
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (below, m), (above, n) = groups[-2:]
            if above - below >= LABEL_GAP * (m + n) / 2:
                break
            groups[-2:] = [((below * m + above * n) / (m + n), m + n)]
    return [middle + LABEL_GAP * (i - (count - 1) / 2) for middle, count in groups for i in range(count)]

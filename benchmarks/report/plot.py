"""The plot of the results: time over the floor by number of rows, a line for each contender, a panel for each size."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.cpu.contenders import (
    COMPILED,
    CONTENDERS,
    DEDUPLICATED,
    FLOOR,
    ORIGINAL,
    ORIGINAL_WITHOUT_ERROR,
    PLAIN_ONNX,
    THIS,
)

# Okabe and Ito's colours, which people with any common colour blindness can tell apart.
LOOKS: dict[str, dict[str, Any]] = {
    ORIGINAL: {"color": "#D55E00", "marker": "o"},
    ORIGINAL_WITHOUT_ERROR: {"color": "#E69F00", "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    DEDUPLICATED: {"color": "#CC79A7", "marker": "s"},
    COMPILED: {"color": "#56B4E9", "marker": "^"},
    PLAIN_ONNX: {"color": "#009E73", "marker": "D"},
    THIS: {"color": "#000000", "marker": "o", "linewidth": 2.5},
}
GAP = 0.055  # of an axis' height, between two labels


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the lines of the grid; of a size that has several constructions the realistic one."""
    panels: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for line in lines:
        panels.setdefault((line["d_in"], line["d_sae"], line["frequencies"]), []).append(line)
    sizes = {(d_in, d_sae): frequencies for d_in, d_sae, frequencies in sorted(panels, reverse=True)}
    shown = [key for key in panels if sizes[key[:2]] == key[2]]
    figure, axes = plt.subplots(1, len(shown), figsize=(6.4 * len(shown), 4.8), layout="constrained", squeeze=False,
                                sharey=True)  # fmt: skip
    for axis, key in zip(axes[0], shown, strict=True):
        draw(axis, panels[key])
        axis.set_title(f"{key[0]} x {key[1]}, mean L0 about {panels[key][0]['l0_wanted']:.0f} ({key[2]})")
    axes[0][0].set_ylabel("time over the floor")
    # One set of limits for all panels, before the labels are set apart in them.
    top = max(line[f"over_{FLOOR}"][name][0] for key in shown for line in panels[key] for name in LOOKS if name
              in line[f"over_{FLOOR}"])  # fmt: skip
    low = min(min(line[f"over_{FLOOR}"].get(THIS, [1])) for key in shown for line in panels[key])
    axes[0][0].set_ylim(min(0.8, 0.85 * low), 1.3 * top)
    for axis, key in zip(axes[0], shown, strict=True):
        label(axis, panels[key])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(axis: Any, lines: list[dict[str, Any]]) -> None:
    """Draw the contenders of one SAE, the quartiles shaded."""
    axis.set(xscale="log", yscale="log", xlabel="rows (tokens in one call)")
    for name, look in LOOKS.items():
        points = [(line["rows"], *line[f"over_{FLOOR}"][name]) for line in lines if name in line[f"over_{FLOOR}"]]
        if points:
            rows, median, low, high = zip(*points, strict=True)
            axis.plot(rows, median, **{"linewidth": 1.5, "markersize": 5, **look})
            axis.fill_between(rows, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axis.axhline(1, color="grey", linewidth=1, linestyle=":")
    counts = [line["rows"] for line in lines]
    axis.set_xticks(counts, [str(count) for count in counts], minor=False)
    axis.set_xticks([], minor=True)
    ticks = [0.5, 1, 2, 4, 8, 16, 32, 64]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_yticks([], minor=True)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def label(axis: Any, lines: list[dict[str, Any]]) -> None:
    """Write each contender's name behind the end of its line, moved apart where they would overlap."""
    last = lines[-1]
    ends = {name: last[f"over_{FLOOR}"][name][0] for name in LOOKS if name in last[f"over_{FLOOR}"]}
    low, high = np.log(axis.get_ylim())
    names = sorted([*ends, FLOOR], key=lambda name: ends.get(name, 1.0))
    heights = apart([(np.log(ends.get(name, 1.0)) - low) / (high - low) for name in names])
    for name, height in zip(names, heights, strict=True):
        text = "floor: encoder product and copies" if name == FLOOR else CONTENDERS[name].title
        axis.annotate(
            text,
            (1.01, height),
            xycoords="axes fraction",
            va="center",
            color=LOOKS[name]["color"] if name in LOOKS else "grey",
            fontweight="bold" if name == THIS else "normal",
            annotation_clip=False,
        )


def apart(heights: list[float]) -> list[float]:
    """Return ascending heights at least `GAP` from each other, moved up and down alike."""
    groups: list[tuple[float, int]] = []  # the middle of neighbours that touch, and how many
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (below, m), (above, n) = groups[-2:]
            if above - below >= GAP * (m + n) / 2:
                break
            groups[-2:] = [((below * m + above * n) / (m + n), m + n)]
    return [middle + GAP * (i - (count - 1) / 2) for middle, count in groups for i in range(count)]

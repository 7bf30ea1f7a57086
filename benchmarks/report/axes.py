"""Code that the plots share: logarithmic axes, and lines whose quartiles are shaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

# The colours of Okabe and Ito, which people with any common colour blindness can tell apart.
BLACK, ORANGE, LIGHT_BLUE = "#000000", "#E69F00", "#56B4E9"
GREEN, VERMILION, PURPLE, BLUE = "#009E73", "#D55E00", "#CC79A7", "#0072B2"
BROWN = "#7F5F1F"  # in place of their yellow, which is too pale for a line

Point = tuple[float, float, float, float]
"""Number of rows, median, lower quartile and upper quartile."""


def make_panels(count: int, width: float, share_y: bool = True) -> tuple[Any, Any]:
    """Return a figure with `count` panels side by side, and the panels."""
    figure, axes = plt.subplots(1, count, figsize=(width, 4.8), layout="constrained", squeeze=False, sharey=share_y)
    return figure, axes[0]


def draw_line(axis: Any, points: Sequence[Point], **style: Any) -> None:
    """Draw the medians as a line and shade the range of the quartiles; draw nothing if there are no points."""
    if points:
        rows, median, low, high = zip(*points, strict=True)
        axis.plot(rows, median, **style)
        axis.fill_between(rows, low, high, color=style["color"], alpha=0.15, linewidth=0)


def set_log_axes(axis: Any, rows: Sequence[int], ticks: Sequence[float]) -> None:
    """Make both axes logarithmic, label the x axis at `rows` and the y axis at `ticks`."""
    axis.set(xscale="log", yscale="log", xlabel="rows (tokens in one call)")
    axis.set_xticks(rows, [str(count) for count in rows])
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    for set_minor_ticks in (axis.set_xticks, axis.set_yticks):
        set_minor_ticks([], minor=True)
    axis.grid(axis="y", color="0.9", linewidth=0.6)


def whole_numbers() -> Any:
    """Return a locator of ticks at whole numbers, about four of them."""
    return MaxNLocator(4, integer=True)


def save(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write the figure to a file."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)

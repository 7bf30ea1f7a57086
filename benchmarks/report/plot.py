"""The plot of the CPU results: time over the floor by number of rows, a line per contender, a panel per use."""

from pathlib import Path
from typing import Any

from benchmarks.cpu.contenders.names import (
    AUTOTUNED,
    COMPILED,
    CONTENDERS,
    DEDUPLICATED,
    FLOOR,
    NUMPY,
    OPENVINO,
    ORIGINAL,
    PLAIN_ONNX,
    SAELENS,
    THIS,
)
from benchmarks.cpu.contenders.uses import USES
from benchmarks.report import axes as draw

STYLES: dict[str, dict[str, Any]] = {
    ORIGINAL: {"color": draw.VERMILION, "marker": "o"},
    SAELENS: {"color": draw.ORANGE, "marker": "v"},
    DEDUPLICATED: {"color": draw.PURPLE, "marker": "s"},
    COMPILED: {"color": draw.LIGHT_BLUE, "marker": "^"},
    AUTOTUNED: {"color": draw.LIGHT_BLUE, "marker": "^", "linestyle": "--", "markerfacecolor": "white"},
    PLAIN_ONNX: {"color": draw.GREEN, "marker": "D"},
    OPENVINO: {"color": draw.BLUE, "marker": "P"},
    NUMPY: {"color": draw.BROWN, "marker": "X"},
    THIS: {"color": draw.BLACK, "marker": "o", "linewidth": 2.5},
}
TICKS = [2.0**power for power in range(-1, 13)]

Line = dict[str, Any]  # a line of the results, as in the JSON file
OVER_FLOOR = f"over_{FLOOR}"


def plot(lines: list[Line], path: Path) -> None:
    """Draw the lines of the first size and construction."""
    first = [lines[0][key] for key in ("d_in", "d_sae", "frequencies")]
    shown = [line for line in lines if [line[key] for key in ("d_in", "d_sae", "frequencies")] == first]
    uses = [use for use in USES if any(line["use"] == use for line in shown)]
    figure, axes = draw.make_panels(len(uses), 3.6 * len(uses), share_y=False)
    for axis, use in zip(axes, uses, strict=True):
        draw_contenders(axis, [line for line in shown if line["use"] == use])
        axis.set_title(USES[use].title, fontsize="medium")
    axes[0].set_ylabel("time over the floor")
    handles = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"SAE of {first[0]} x {first[1]}, mean L0 about {shown[0]['l0_wanted']:.0f}", fontsize="medium")
    draw.save(figure, path, dpi=160)


def draw_contenders(axis: Any, lines: list[Line]) -> None:
    """Draw the contenders of one SAE in one use."""
    drawn = []
    for name, style in STYLES.items():
        points = [(line["rows"], *line[OVER_FLOOR][name]) for line in lines if name in line[OVER_FLOOR]]
        drawn += [value for point in points for value in point[1:]]
        title = CONTENDERS[name].title
        draw.draw_line(axis, points, **{"label": title, "linewidth": 1.5, "markersize": 5, **style})
    axis.axhline(1, color="grey", linewidth=1.5, linestyle=":", label="floor: the encoder's product")
    low, high = min([1, *drawn]) / 1.15, max([2, *drawn]) * 1.15
    draw.set_log_axes(axis, [line["rows"] for line in lines], [tick for tick in TICKS if low <= tick <= high])
    axis.set_ylim(low, high)
    axis.spines[["top", "right"]].set_visible(False)

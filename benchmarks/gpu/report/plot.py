"""The plot of the GPU results: time over this project's by number of rows, a panel for each precision."""

from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from benchmarks.gpu.contenders.names import DEDUPLICATED, ORIGINAL
from benchmarks.report import axes as draw

LABELS = {
    ORIGINAL: ("PyTorch original", draw.VERMILION),
    DEDUPLICATED: ("PyTorch, deduplicated", draw.PURPLE),
    "compile": ("fastest torch.compile", draw.LIGHT_BLUE),
    "limit": ("limit", draw.BLACK),
}
LINE_STYLES: Any = ("-", "--", ":", "-.")  # one for each size


def plot(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw a panel for each precision, with a line for each contender and size."""
    precisions = list(dict.fromkeys(line["precision"] for line in lines))
    sizes = list(dict.fromkeys((line["d_in"], line["d_sae"]) for line in lines))
    styles = list(zip(sizes, LINE_STYLES, strict=False))
    figure, axes = draw.make_panels(len(precisions), max(4.2 * len(precisions), 8))
    for axis, precision in zip(axes, precisions, strict=True):
        for size, style in styles:
            panel = [line for line in lines if (line["precision"], line["d_in"], line["d_sae"]) == (precision, *size)]
            for name, (_, color) in LABELS.items():
                points = [(line["rows"], *values) for line in panel if (values := ratio_to_this(line, name))]
                draw.draw_line(axis, points, color=color, linestyle=style, marker="o", markersize=4)
        axis.axhline(1, color="grey", linewidth=1)
        axis.set_title(precision)
        draw.set_log_axes(axis, sorted({line["rows"] for line in lines}), [0.25, 0.5, 1, 2, 4, 8, 16, 32])
    axes[0].set_ylabel("time over this project's")
    keys = [Line2D([], [], color=color, label=text) for text, color in LABELS.values()]
    keys += [Line2D([], [], color="grey", linestyle=style, label=f"{d_in} x {d_sae}")
             for (d_in, d_sae), style in styles]  # fmt: skip
    figure.legend(handles=keys, loc="outside lower center", ncols=-(-len(keys) // 2), frameon=False)
    figure.suptitle(title)
    draw.save(figure, path)


def ratio_to_this(line: dict[str, Any], name: str) -> list[float] | None:
    """Return the time of a contender, or the limit, divided by this project's: median and quartiles."""
    return line.get("of_limit") if name == "limit" else line["ratios"].get(name)

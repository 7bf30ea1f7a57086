"""The plot of the results: how many times this project's time the others take, by number of rows."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from benchmarks.gpu.contenders import DEDUPLICATED, ORIGINAL

# Okabe and Ito's colours, which people with any common colour blindness can tell apart.
LOOKS: dict[str, tuple[str, str]] = {
    ORIGINAL: ("PyTorch original", "#D55E00"),
    DEDUPLICATED: ("PyTorch, deduplicated", "#CC79A7"),
    "compile": ("fastest torch.compile", "#56B4E9"),
    "limit": ("limit", "#000000"),
}
STYLES = ("-", "--", ":", "-.")


def plot(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw a panel for each precision, a line for each contender and size."""
    precisions = list(dict.fromkeys(line["precision"] for line in lines))
    sizes = list(dict.fromkeys((line["d_in"], line["d_sae"]) for line in lines))
    figure, axes = plt.subplots(1, len(precisions), figsize=(max(4.2 * len(precisions), 8), 4.8), layout="constrained",
                                squeeze=False, sharey=True)  # fmt: skip
    for axis, precision in zip(axes[0], precisions, strict=True):
        for size, style in zip(sizes, STYLES, strict=False):
            of_panel = [
                line for line in lines if (line["precision"], line["d_in"], line["d_sae"]) == (precision, *size)
            ]
            for name, (_, color) in LOOKS.items():
                points = [(line["rows"], *values) for line in of_panel if (values := ratio_to_this(line, name))]
                if points:
                    rows, median, low, high = zip(*points, strict=True)
                    axis.plot(rows, median, color=color, linestyle=style, marker="o", markersize=4)
                    axis.fill_between(rows, low, high, color=color, alpha=0.15, linewidth=0)
        axis.axhline(1, color="grey", linewidth=1)
        axis.set(xscale="log", yscale="log", title=precision, xlabel="rows (tokens in one call)")
        counts = sorted({line["rows"] for line in lines})
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xticks([], minor=True)
        ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_yticks([], minor=True)
        axis.grid(axis="y", color="0.9", linewidth=0.6)
    axes[0][0].set_ylabel("time over this project's")
    keys = [Line2D([], [], color=color, label=text) for text, color in LOOKS.values()]
    keys += [Line2D([], [], color="grey", linestyle=style, label=f"{d_in} x {d_sae}")
             for (d_in, d_sae), style in zip(sizes, STYLES, strict=False)]  # fmt: skip
    figure.legend(handles=keys, loc="outside lower center", ncols=-(-len(keys) // 2), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ratio_to_this(line: dict[str, Any], name: str) -> list[float] | None:
    """Return how many times this project's time a contender, or the limit, takes: median and quartiles."""
    return line.get("of_limit") if name == "limit" else line["ratios"].get(name)

"""Charts of a report: the share of each budget that is used, and histograms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np

from ...arrays.tensor import Array
from .markup import drawing, element, line, text

BINS = 16
WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 12, 46

LABELS, LANE, PER_BUDGET = 128, 17, 500
SHOWN_SHARE = 1.2
"""The largest share of a budget that has its own place. Larger ones are drawn there, with their number in words."""


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: what is below it, how high it is, and what it says when it is pointed at."""

    label: str
    height: int
    description: str


@dataclass(frozen=True)
class Share:
    """A share of a budget: which graph's it is, how large it is, and whether the graph failed there."""

    graph: str
    value: float
    failed: bool = False


def histogram(name: str, title: str, bars: Sequence[Bar], x_label: str, y_label: str) -> Element:
    """Return a chart of bars.

    Args:
        name: Name of the image.
        title: What it shows.
        bars: The bars, from left to right.
        x_label: What the labels below the bars are.
        y_label: What the heights are.
    """
    step = _round_step(max(bar.height for bar in bars))
    top = step * math.ceil(max(bar.height for bar in bars) / step)
    bottom, slot = HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) / len(bars)

    def y_of(height: float) -> float:
        return bottom - (bottom - TOP) * height / top

    parts = []
    for tick in range(0, top + 1, step):
        parts.append(line((LEFT, y_of(tick)), (WIDTH - RIGHT, y_of(tick)), class_="axis" if tick == 0 else "grid"))
        parts.append(text(LEFT - 6, y_of(tick) + 4, f"{tick:,}", "tick", "end"))
    widest = max(len(bar.label) for bar in bars) * 6.2
    every = max(1, math.ceil(widest / slot))
    for i, bar in enumerate(bars):
        x, y = LEFT + slot * i, y_of(bar.height)
        parts.append(
            element("rect", element("title", bar.description), x=f"{x + 1:.1f}", y=f"{y:.1f}", class_="bar",
                    width=f"{max(slot - 2, 1):.1f}", height=f"{bottom - y:.1f}")
        )  # fmt: skip
        if i % every == 0:
            parts.append(text(round(x + slot / 2, 1), bottom + 15, bar.label, "tick"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "label"))
    vertical = text(0, 0, y_label, "label")
    vertical.set("transform", f"translate(11 {(TOP + bottom) / 2:g}) rotate(-90)")
    description = "; ".join(bar.description for bar in bars if bar.height)
    return drawing(name, WIDTH, HEIGHT, title, description, *parts, vertical)


def bars_of(values: Array, noun: str, unit: str) -> list[Bar]:
    """Return the bars of a histogram of numbers, at most `BINS` + 2, whose bounds are round numbers.

    Args:
        values: The numbers, at least one.
        noun: What is counted, in the plural: "tokens".
        unit: What the numbers are, for the descriptions: "features on".
    """
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    step = _round_width((high - low) / BINS, whole, high)
    first = math.floor(low / step)
    places = np.floor(values / step + 1e-9).astype(np.int64) - first
    counts = np.bincount(np.maximum(places, 0))
    digits = max(0, -math.floor(math.log10(step)))
    bars = []
    for i, count in enumerate(counts):
        start, end = (first + i) * step, (first + i + 1) * step
        label = f"{start:.{digits}f}"
        last = f"{end - 1:.0f}" if whole else f"{end:.{digits}f}"
        span = label if last == label else f"{label} to {last}"
        bars.append(Bar(label, int(count), f"{span} {unit}: {count:,} {noun}"))
    return bars


def frequency_bars(frequency: Array, tokens: int) -> list[Bar]:
    """Return bars of how many features are on for 0, 1, 2, 3 to 4, 5 to 8 and so on of the tokens."""
    bounds = [0, 1]
    while bounds[-1] < tokens:
        bounds.append(min(2 * bounds[-1], tokens))
    bars, previous = [], -1
    for bound in bounds:
        count = int(((frequency > previous) & (frequency <= bound)).sum())
        span = f"{bound}" if bound - previous == 1 else f"{previous + 1}-{bound}"
        bars.append(Bar(span, count, f"on for {span.replace('-', ' to ')} of {tokens} tokens: {count:,} features"))
        previous = bound
    return bars


def budget_chart(shares: Mapping[str, Sequence[Sequence[Share]]], own: Mapping[str, Sequence[float]]) -> Element:
    """Return a chart of the share of its budget that each graph uses at each hook.

    Args:
        shares: For each hook, the shares of its token budget and of its element budget.
        own: For each hook, the shares that the error of the PyTorch original takes of them.
    """
    height = 2 * LANE * len(shares) + 8 * len(shares) + 46
    right, parts = LABELS + PER_BUDGET, []
    for percent in (0, 25, 50, 75, 100):
        x = LABELS + PER_BUDGET * percent / 100
        parts.append(line((x, 8), (x, height - 34), class_="budget" if percent == 100 else "grid"))
        label = "budget" if percent == 100 else f"{percent}%"
        parts.append(text(x, height - 18, label, "label" if percent == 100 else "tick"))
    y = 20.0
    for hook, kinds in shares.items():
        parts.append(text(0, y + 12, _short(hook), "name", "start"))
        for i, (kind, found) in enumerate(zip(("token", "element"), kinds, strict=True)):
            parts.append(text(LABELS - 8, y + 4, kind, "tick", "end"))
            if i < len(own.get(hook, ())) and own[hook][i] <= SHOWN_SHARE:
                x = LABELS + PER_BUDGET * own[hook][i]
                mark = line((x, y - 6), (x, y + 6), class_="own")
                mark.append(element("title", f"{_short(hook)}, {kind}: PyTorch's own error, {own[hook][i]:.0%} of it"))
                parts.append(mark)
            parts += [_dot(hook, kind, share, y) for share in found]
            y += LANE
        y += 8
    parts.append(text(right + 12, 12, "fails", "bad", "start"))
    largest = {hook: max(share.value for found in kinds for share in found) for hook, kinds in shares.items()}
    described = "; ".join(f"{_short(hook)}: at most {share:.0%} of its budget" for hook, share in largest.items())
    title = "Errors on this machine, as shares of their budgets"
    return drawing("budgets", right + PER_BUDGET * (SHOWN_SHARE - 1) + 12, height, title, described, *parts)


def _dot(hook: str, kind: str, share: Share, y: float) -> Element:
    x = LABELS + PER_BUDGET * min(share.value, SHOWN_SHARE)
    said = f"{share.graph}, {_short(hook)}, {kind} error: {share.value:.3g} of its budget"
    if share.failed:  # a cross, so that it does not differ by its colour alone
        return element(
            "path", element("title", said), d=f"M{x - 5:.1f} {y - 5:g} l10 10 m0 -10 l-10 10", class_="cross"
        )
    return element("circle", element("title", said), cx=f"{x:.1f}", cy=f"{y:g}", r=5, class_="dot")


def _short(hook: str) -> str:
    return hook.removeprefix("hook_sae_")


def _round_step(top: int) -> int:
    """Return the distance of at most five ticks up to a number, a round one."""
    wanted = max(1, top) / 4
    power = 10 ** math.floor(math.log10(wanted))
    return max(1, int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted)))


def _round_width(wanted: float, whole: bool, high: float) -> float:
    """Return the width of a bin, a round number that is at least `wanted`."""
    least = 1.0 if whole else max(abs(high) * 1e-3, 1e-9)
    wanted = max(wanted, least)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))

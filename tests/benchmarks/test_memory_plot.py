"""The plot of the memory shows what was measured."""

import json

import numpy as np

from benchmarks.report import memory_plot

LINES = [
    {"d_in": 2, "d_sae": 4, "weights_bytes": 2e6, "rows": rows, "call": call, "bytes": 3e6 * rows, "whole_bytes": 6e6}
    for rows in (1, 8)
    for call in ("before", "encode")
]


def drawn(lines, tmp_path, monkeypatch):
    """Return the panels by title: the length of each bar by label."""
    panels = {}

    def keep(figure, path, dpi):
        for axis in figure.axes:
            panels[axis.get_title()] = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axis.containers}
        save(figure, path, dpi)

    save = memory_plot.draw.save
    monkeypatch.setattr(memory_plot.draw, "save", keep)
    memory_plot.plot(lines, tmp_path / "memory.png")
    width, height = np.frombuffer((tmp_path / "memory.png").read_bytes()[16:24], ">u4")
    assert width >= height
    return panels


def test_a_panel_has_the_ratio_to_the_weights_of_each_call(tmp_path, monkeypatch):
    panels = drawn(LINES, tmp_path, monkeypatch)
    assert panels == {"1 row": {"shared_stages=False": [3.0, 3.0], "default options": [1.5, 1.5]},
                      "8 rows": {"shared_stages=False": [3.0, 3.0], "default options": [12.0, 12.0]}}  # fmt: skip


def test_what_else_was_measured_is_drawn_too(tmp_path, monkeypatch):
    lines = [{**line, "without_arena_bytes": 1e6} for line in LINES]
    assert drawn(lines, tmp_path, monkeypatch)["1 row"]["arena=False"] == [0.5, 0.5]


def test_the_stored_results_can_be_drawn(tmp_path, monkeypatch):
    lines = json.loads(memory_plot.RESULTS.read_text())["rows"]
    assert all(bars for bars in drawn(lines, tmp_path, monkeypatch).values())

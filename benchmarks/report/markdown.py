"""Markdown tables, and the text of their cells."""

from collections.abc import Sequence


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ratio_cell(values: Sequence[float] | None) -> str:
    """Return a median with its quartiles, such as `1.53 (1.50-1.56)`; nothing if it was not measured."""
    return "{:.2f} ({:.2f}-{:.2f})".format(*values) if values else ""


def size_cell(line: dict[str, object]) -> str:
    """Return the size of the SAE of a line of results, such as `768 x 24576`."""
    return f"{line['d_in']} x {line['d_sae']}"

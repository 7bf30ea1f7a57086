"""Tables as plain text."""

from collections.abc import Collection, Sequence

Row = Sequence[str]


def format_table(
    rows: Sequence[Row], *, header: Row = (), right: Collection[int] = (), rule: bool = False, indent: int = 0
) -> str:
    """Return rows as lines of aligned columns, two spaces apart.

    Args:
        rows: Cells of each row; all rows have the same number of cells.
        header: Titles of the columns, printed above the rows.
        right: Indices of the columns that are aligned to the right, such as those of numbers.
        rule: Whether a line of dashes separates the header from the rows.
        indent: Number of spaces before each line.
    """
    lines = [header, *rows] if header else list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if header and rule:
        lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        " " * indent
        + "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

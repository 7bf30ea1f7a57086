"""Tables as plain text."""

import pytest

from runtime.tables import format_table


def test_columns_are_as_wide_as_their_widest_cell():
    assert format_table([("a", "bbb"), ("cc", "d")]) == "a   bbb\ncc  d"


def test_a_header_can_have_a_rule_and_columns_can_be_aligned_to_the_right():
    table = format_table([("a", "1.50"), ("b", "12.25")], header=("name", "ms"), right={1}, rule=True, indent=2)
    assert table.splitlines() == ["  name     ms", "  ----  -----", "  a      1.50", "  b     12.25"]


def test_an_empty_table_has_its_header_only():
    assert format_table([], header=("name", "ms")) == "name  ms"
    assert format_table([]) == ""


def test_rows_have_equally_many_cells():
    with pytest.raises(ValueError):
        format_table([("a", "b"), ("c",)])

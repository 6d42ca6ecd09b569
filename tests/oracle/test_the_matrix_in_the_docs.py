"""docs/support-matrix.md shows the cells that the oracle runs, no more and no fewer, and none that failed."""

from __future__ import annotations

from pathlib import Path

from tests.oracle.test_every_method_on_every_architecture import COLUMNS, ROWS

PAGE = (Path(__file__).parents[2] / "docs" / "support-matrix.md").read_text()


def test_the_page_has_every_row_and_every_column_that_is_run() -> None:
    table = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    head, _, *rows = table
    assert tuple(head) == COLUMNS
    assert [row[0] for row in rows] == list(ROWS)
    for row in rows:
        assert len(row) == len(COLUMNS) + 1
        assert set(row[1:]) <= {"S", "P", "M", "–", "r"}, row

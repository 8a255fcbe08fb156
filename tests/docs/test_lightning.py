"""The table of Lightning's features is what the tests show."""

from __future__ import annotations

import pytest

from .lightning import FILE, PAGE, SAID, SHOWN, Row, all_marked, chapters, page

TEXT = FILE.read_text(encoding="utf-8")
ROWS = [row for rows in chapters(TEXT).values() for row in rows]
SIZES = {"T": 40, "M": 10, "C": 23, "L": 12, "S": 11, "P": 8, "K": 11, "G": 5, "F": 5}
SIZES |= {"U": 2, "I": 8, "H": 17, "O": 4, "X": 8, "Z": 4, "V": 10, "D": 11}
"""How many features of Lightning 2.6 there are of each kind, and rules, and defects."""
MARKED = all_marked()


def test_the_page_is_that_of_the_rows_and_marks():
    assert PAGE.read_text(encoding="utf-8") == page(TEXT, MARKED), (
        "write it anew: python -m tests.docs.lightning"
    )


def test_each_feature_rule_and_defect_has_one_row():
    expected = [f"{kind}{i}" for kind, size in SIZES.items() for i in range(1, size + 1)]
    assert [row.id for row in ROWS] == expected
    assert sum(row.common for row in ROWS) == 119


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_what_is_said_to_be_here_has_a_test_and_all_else_a_reason(row: Row):
    assert row.verdict in SAID and row.lightning and row.here
    shown = any(row.id in test.ids for test in MARKED)
    assert shown == (row.verdict in SHOWN), (
        f"{row.id} is {row.verdict!r}: mark a test, or change it"
    )


def test_marks_name_rows():
    known = {row.id for row in ROWS}
    wrong = {test: set(test.ids) - known for test in MARKED if set(test.ids) - known}
    assert not wrong

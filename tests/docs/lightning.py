"""Lightning's features beside what one writes here, and the tests that show it.

Rows are in ``lightning.txt``, one a line: id, with a star if many use it; what Lightning calls it;
``yes``, ``partly``, ``not yet`` or ``no``; and the form, or a sentence. Tests show a feature by a
mark, which a scenario of many ranks may have, too:

    @pytest.mark.lightning("T14", "C15")

``python -m tests.docs.lightning`` writes the page.
"""

from __future__ import annotations

import ast
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_suffix(".txt")
PAGE = TESTS.parent / "docs" / "reference" / "lightning.md"

SAID = {"yes": "", "partly": "*In part:* ", "not yet": "*Not yet:* ", "no": "*No:* "}
SHOWN = ("yes", "partly")
"""Verdicts that a test has to show."""

BESIDES = ("V", "D")
"""What the ids of rows that are no features begin with: rules, and defects."""

HEAD = """# Lightning's features

<!-- Written by: python -m tests.docs.lightning -->

What PyTorch Lightning 2.6 has, row by row, what one writes here, and the tests that show it. How a
program is brought over is told in [Come from Lightning](../how-to/from-lightning.md).

| | here | in part | not yet | need not, or will not be |
| --- | --- | --- | --- | --- |
{counts}

Rules and defects have tables of their own, at the end. Tests are named with their file: *agrees
with our own* in `metrics/test_adapter` is `test_agrees_with_our_own` in
`tests/metrics/test_adapter.py`; what many ranks run (`distributed/laws`) has no `test_`. The tables
are made of the marks of tests.
"""


class Row(NamedTuple):
    id: str
    common: bool
    lightning: str
    verdict: str
    here: str


class Shown(NamedTuple):
    """A test, or a scenario of many ranks, with the ids that it has in its marks."""

    file: str
    name: str
    ids: tuple[str, ...]


def chapters(text: str) -> dict[str, list[Row]]:
    """The rows by their chapter's title.

    >>> chapters("# Loops (O)\\nO1*  | a loop | yes | a `for`\\n")
    {'Loops (O)': [Row(id='O1', common=True, lightning='a loop', verdict='yes', here='a `for`')]}
    """
    found: dict[str, list[Row]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("# "):
            rows = found[line.removeprefix("# ")] = []
            continue
        number, lightning, verdict, here = (part.strip() for part in line.split(" | "))
        rows.append(Row(number.rstrip("*"), number.endswith("*"), lightning, verdict, here))
    return found


def marked(code: str, file: str) -> list[Shown]:
    """What the marks of a file say, without running it; those of helpers say nothing.

    >>> marked("@pytest.mark.lightning('T1')\\ndef test_a_b(): ...", "loop/test_run")
    [Shown(file='loop/test_run', name='a b', ids=('T1',))]
    """
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef) or not _is_run(node):
            continue
        marks = [each for each in node.decorator_list if _is_mark(each)]
        ids = tuple(ast.literal_eval(arg) for each in marks for arg in each.args)
        if ids:
            found.append(Shown(file, node.name.removeprefix("test_").replace("_", " "), ids))
    return found


def _is_run(node: ast.FunctionDef) -> bool:
    return node.name.startswith("test_") or "scenario" in map(ast.unparse, node.decorator_list)


def _is_mark(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.lightning"


def all_marked() -> list[Shown]:
    """What all tests show, by file."""
    files = sorted(TESTS.rglob("*.py"), key=lambda path: path.relative_to(TESTS).as_posix())
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    return [
        shown
        for path, text in texts.items()
        if "mark.lightning(" in text
        for shown in marked(text, path.relative_to(TESTS).with_suffix("").as_posix())
    ]


def page(text: str, tests: list[Shown]) -> str:
    """The page, of the rows in `text` and what tests show."""
    parts = chapters(text)
    features = [row for row in chain(*parts.values()) if not row.id.startswith(BESIDES)]
    common = [row for row in features if row.common]
    counts = [_counts("all {}", features), _counts("the {} that many use, **bold** below", common)]
    lines = [HEAD.format(counts="\n".join(counts))]
    for title, rows in parts.items():
        lines += [f"## {title}", ""]
        lines += ["| | Lightning | here | shown by |", "| --- | --- | --- | --- |"]
        lines += [_line(row, [test for test in tests if row.id in test.ids]) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _counts(who: str, rows: list[Row]) -> str:
    numbers = Counter(row.verdict for row in rows)
    return _cells(who.format(len(rows)), *(str(numbers[verdict]) for verdict in SAID))


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _line(row: Row, tests: list[Shown]) -> str:
    number = f"**{row.id}**" if row.common else row.id
    shown = "; ".join(f"*{test.name}* in `{test.file}`" for test in tests)
    return _cells(number, row.lightning, SAID[row.verdict] + row.here, shown)


if __name__ == "__main__":
    PAGE.write_text(page(FILE.read_text(encoding="utf-8"), all_marked()), encoding="utf-8")

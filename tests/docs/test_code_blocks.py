"""The code in README.md and docs/ runs, and prints what the pages say that it prints.

The blocks of a page run in order, in one namespace and one empty folder:

- ``python`` blocks are executed; a ``text`` block right after one is its output, in which ``...``
  stands for anything and decimal numbers may differ by a few per cent;
- one with a title, ``python title="line.py"``, is written to a file of that name instead;
- in ``bash`` blocks, the commands that start with ``fnloop`` are run;
- a comment ``<!-- not run: reason -->`` on the line before exempts a block.

Pages in ``how-to`` start from the blocks of ``how-to/index.md``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from fnloop.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"^(?P<exempt><!-- not run: [^\n]+ -->\n)?```(?P<kind>\w+)(?: title=\"(?P<title>.+?)\")?\n"
    r"(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_DECIMAL = r"-?\d+\.\d+(?:e[-+]?\d+)?|-?\d+e[-+]?\d+"
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan)"


class Block(NamedTuple):
    kind: str
    title: str | None
    code: str
    line: int
    exempt: bool


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match["kind"],
            match["title"],
            match["code"],
            text.count("\n", 0, match.start("code")),
            match["exempt"] is not None,
        )
        for match in _FENCE.finditer(text)
    ]


def commands(code: str) -> list[list[str]]:
    """The ``fnloop`` commands of a shell block, as words."""
    lines = code.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith("fnloop ")]


def runs(block: Block) -> bool:
    is_code = block.kind == "python" or (block.kind == "bash" and commands(block.code) != [])
    return is_code and not block.exempt


WITH_CODE = [page for page in PAGES if any(map(runs, blocks_of(page)))]


@pytest.mark.filterwarnings("default:Aim cannot be imported")  # beyond Python 3.12
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__*"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    if page.parent.name == "how-to" and page.name != "index.md":
        run_all(page.with_name("index.md"), namespace)
    run_all(page, namespace)


def run_all(page: Path, namespace: dict[str, object]) -> None:
    blocks = blocks_of(page)
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block.exempt:
            continue
        place = f"{page.relative_to(ROOT)}:{block.line}"
        if block.kind == "python" and block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
            continue
        if block.kind == "python":
            printed = executed(block, page, namespace)
        elif block.kind == "bash":
            printed = "".join(commanded(words, place) for words in commands(block.code))
        else:
            continue
        if following is not None and following.kind == "text" and not following.exempt:
            assert agrees(following.code, printed), (
                f"{place} prints\n{printed}\nand the page says\n{following.code}"
            )


def executed(block: Block, page: Path, namespace: dict[str, object]) -> str:
    # Empty lines before it, so that a traceback shows the page's own line.
    code = compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    return output.getvalue()


def commanded(words: list[str], place: str) -> str:
    # In this process: the command line itself has its own tests, and torch is imported already.
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(words[1:])
    assert code == 0, f"{place}: {shlex.join(words)} failed:\n{errors.getvalue()}"
    return output.getvalue()


def agrees(expected: str, printed: str) -> bool:
    """Whether the output is the expected one, up to white space, ``...`` and rounding."""
    pattern, numbers = "", list[float]()
    for part in re.split(rf"(\.\.\.|\s+|{_DECIMAL})", expected.strip()):
        if part == "...":
            pattern += ".*?"
        elif not part.strip():
            pattern += r"\s+" if part else ""
        elif re.fullmatch(_DECIMAL, part):
            pattern += _NUMBER
            numbers.append(float(part))
        else:
            pattern += re.escape(part)
    match = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    return match is not None and all(
        math.isclose(float(found), number, rel_tol=0.05, abs_tol=1e-9)
        for found, number in zip(match.groups(), numbers, strict=True)
    )


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 0.50\n", "loss  0.51", True),
        ("loss 0.50\n", "loss 0.60", False),
        ("step 10", "step 11", False),
        ("a ... z", "a b c z", True),
        ("a ... z", "a b c", False),
        ("lr 1e-3", "lr 0.001", True),
        ("loss 0.5", "accuracy 0.5", False),
    ],
)
def test_agrees(expected: str, printed: str, same: bool) -> None:
    assert agrees(expected, printed) is same


def test_commands() -> None:
    code = "pip install '.[examples]' && fnloop fit a.py \\\n  --lr 0.1  # train\naim up\n"
    assert commands(code) == [["fnloop", "fit", "a.py", "--lr", "0.1"]]

"""Run the code of a page, as a script: ``python run_page.py PAGE``, in an empty folder.

The blocks of a page run in order, in one namespace:

- ``python`` blocks are executed; a ``text`` block right after one is its output, in which ``...``
  stands for anything, and a decimal number may differ by one in its last digit;
- one with a title, ``python title="line.py"`` or ``yaml title="a.yaml"``, is written to a file of
  that name instead;
- in ``bash`` blocks, the commands that start with ``fnloop`` are run;
- a comment ``<!-- not run: reason -->`` on the line before exempts a block.

Pages in ``how-to`` start from the blocks of ``how-to/index.md``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import sys
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
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


class PageError(Exception):
    """A page does not do what it says."""


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


def run_all(page: Path, namespace: dict[str, object]) -> None:
    """Run the blocks of a page.

    Raises:
        PageError: A block does not print what the page says.
        Exception: Whatever a block raises.
    """
    blocks = blocks_of(page)
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block.exempt:
            continue
        place = f"{page.name}:{block.line}"
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
            continue
        if block.kind == "python":
            printed = executed(block, page, namespace)
        elif block.kind == "bash":
            printed = "".join(commanded(words, place) for words in commands(block.code))
        else:
            continue
        shown = following if following is not None and following.kind == "text" else None
        if shown and not shown.exempt and not agrees(shown.code, printed):
            raise PageError(f"{place} prints\n{printed}\nand the page says\n{shown.code}")


def executed(block: Block, page: Path, namespace: dict[str, object]) -> str:
    # Empty lines before it, so that a traceback shows the page's own line.
    code = compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    return output.getvalue()


def commanded(words: list[str], place: str) -> str:
    # In this process: the command line itself has its own tests, and torch is imported already.
    from fnloop.cli.app import main

    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(words[1:])
    if code:
        raise PageError(f"{place}: {shlex.join(words)} failed:\n{errors.getvalue()}")
    return output.getvalue()


def agrees(expected: str, printed: str) -> bool:
    """Whether the output is the expected one, up to white space, ``...`` and the last digits."""
    pattern, numbers = "", list[str]()
    for part in re.split(rf"(\.\.\.|\s+|{_DECIMAL})", expected.strip()):
        if part == "...":
            pattern += ".*?"
        elif not part.strip():
            pattern += r"\s+" if part else ""
        elif re.fullmatch(_DECIMAL, part):
            pattern += _NUMBER
            numbers.append(part)
        else:
            pattern += re.escape(part)
    match = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    return match is not None and all(map(_close, match.groups(), numbers))


def _close(found: str, expected: str) -> bool:
    """Whether a number differs by one in the last printed digit at most, or by 1e-6 of it."""
    number = Decimal(expected)
    unit = Decimal(1).scaleb(int(number.as_tuple().exponent))
    return found != "nan" and abs(Decimal(found) - number) <= max(unit, abs(number) / 10**6)


def main(page: Path) -> None:
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, "")  # a page may import what it has written
    namespace: dict[str, object] = {"__name__": "__main__"}
    if page.parent.name == "how-to" and page.name != "index.md":
        run_all(page.with_name("index.md"), namespace)
    run_all(page, namespace)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

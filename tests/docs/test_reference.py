"""Every public name has its place in the reference, in the chapter that it has in the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from fnloop import testing

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def chapters() -> dict[str, list[str]]:
    """Names by the comment that stands before them in ``fnloop/__init__.py``."""
    text = (ROOT / "fnloop" / "__init__.py").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        imports = [node for node in ast.parse(body).body if isinstance(node, ast.ImportFrom)]
        found[title] = [alias.asname or alias.name for node in imports for alias in node.names]
    return found


def documented() -> dict[str, list[str]]:
    """Names by the title of the page that shows them."""
    found: dict[str, list[str]] = {}
    for page in REFERENCE.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        names = re.findall(r"^::: fnloop\.([\w.]+)$", text, flags=re.MULTILINE)
        if names:
            found[text.splitlines()[0].removeprefix("# ")] = names
    return found


def test_the_reference_has_the_chapters_of_the_package() -> None:
    pages = documented()
    kit = pages.pop("Testing")
    assert {t: sorted(n) for t, n in pages.items()} == {t: sorted(n) for t, n in chapters().items()}
    assert sorted(kit) == sorted(
        f"testing.{name}"
        for name in dir(testing)
        if name.startswith("check_") or name == "LawError"
    )

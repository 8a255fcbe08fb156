"""Every public name has its place in the reference, in the chapter that it has in the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import fnloop

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fnloop.__file__).parent
REFERENCE = ROOT / "docs" / "reference"

RARE = (
    "replays.replay.Replay",
    "profiling.profile_report.Profile",
    "profiling.stage_clock.StageTime",
    "profiling.trace_events.ModuleTime",
    "profiling.trace_events.OperatorTime",
    "profiling.allocations.Allocation",
    "profiling.host_reads.HostRead",
    "schemes.spectrum.Spectrum",
    "tuning.lr_search.LrSearch",
    "tuning.batch_size_search.BatchSizeSearch",
    "tuning.batch_size_search.Attempt",
    "effects.effect.Run",
    "distributed.cost.Cost",
    "distributed.cost.Link",
    "distributed.cost.Machine",
    "transforms.sharded.Sharded",
    "transforms.summary.Summary",
    "transforms.dry_run.Flops",
    "transforms.model_rows.ModuleRow",
    "transforms.stage_rows.StageRow",
    "trees.paths.tree_paths",
    "lightning.brought.Brought",
    "lightning.saved_weights.SavedModule",
)
"""What is documented where it lives: the top has 80 names, those of every day."""


def imported(path: Path) -> list[str]:
    """The names that a table of contents imports."""
    return names_in(path.read_text(encoding="utf-8"))


def names_in(code: str) -> list[str]:
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in imports for alias in node.names]
    return [name for name in names if not name.startswith("_")]


def chapters() -> dict[str, list[str]]:
    """Names by the comment that stands before them in ``fnloop/__init__.pyi``.

    A family (``optim``) stands for what it holds (``optim.adamw``).
    """
    text = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        names = found[title] = []
        for name in names_in(body):
            family = PACKAGE / name / "__init__.py"
            inner = [f"{name}.{each}" for each in imported(family)] if family.exists() else [name]
            names.extend(inner)
    asked_for = imported(PACKAGE / "sklearn" / "__init__.py")  # a family that is imported by name
    return {**found, "scikit-learn": [f"sklearn.{each}" for each in asked_for]}


def documented() -> dict[str, list[str]]:
    """Names by the title of the page that shows them."""
    found: dict[str, list[str]] = {}
    for page in REFERENCE.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        names = re.findall(r"^::: fnloop\.([\w.]+)$", text, flags=re.MULTILINE)
        names = [name for name in names if name not in RARE]
        if names:
            found[text.splitlines()[0].removeprefix("# ")] = names
    return found


def test_the_reference_has_the_chapters_of_the_package() -> None:
    pages = {title: sorted(names) for title, names in documented().items()}
    assert pages == {title: sorted(names) for title, names in chapters().items()}


def test_names_in_pages_and_messages_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    missing = []
    for path in [*pages, *PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for name in set(re.findall(r"\bfl\.([a-z]+\.\w+|\w+)", path.read_text(encoding="utf-8"))):
            first, _, second = name.partition(".")
            home = getattr(fnloop, first, None)
            inside = not second or not isinstance(home, ModuleType) or hasattr(home, second)
            if home is None or not inside:
                missing.append(f"{path.relative_to(ROOT)}: fl.{name}")
    assert not missing


def test_every_page_is_in_the_table_of_contents() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE))

"""Names and rooms: each name has one meaning, and no file is hidden by what it defines."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

import fnloop

ROOT = Path(fnloop.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FAMILIES = (
    "rules",
    "optim",
    "schedules",
    "schemes",
    "metrics",
    "data",
    "tuning",
    "store",
    "trackers",
    "lightning",
    "base",
    "errors",
    "testing",
)
ASKED_FOR = ("sklearn",)
"""Families that `import fnloop` leaves out: they need a package that few have."""


def dotted(path: Path) -> str:
    return ".".join(("fnloop", *path.relative_to(ROOT).with_suffix("").parts))


def submodules() -> list[str]:
    packages = [dotted(path.parent / path.stem).rpartition(".")[0] for path in FILES]
    modules = [dotted(path) for path in FILES if not path.stem.startswith("__")]
    return sorted({*packages, *modules} - {"fnloop"})


def shared(names: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in names.items() if len(places) > 1}


def table_of_contents() -> list[str]:
    tree = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in imports for alias in node.names]


@pytest.mark.parametrize("name", submodules())
def test_no_module_is_hidden(name: str) -> None:
    module = import_module(name)
    package, _, stem = name.rpartition(".")
    assert getattr(import_module(package), stem) is module is sys.modules[name]


def test_no_two_files_have_one_name() -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if path.stem not in ("__init__", "__main__", "base"):
            names[path.stem].append(dotted(path))
    assert shared(names) == {}


def test_no_two_classes_have_one_name() -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name].append(dotted(path))
    assert shared(names) == {}


def test_internal_packages_hold_only_a_docstring() -> None:
    for path in ROOT.rglob("__init__.py"):
        if path.parent != ROOT and path.parent.name not in (*FAMILIES, *ASKED_FOR):
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr), path


def test_the_top_has_at_most_80_names() -> None:
    names = table_of_contents()
    assert len(names) == len(set(names)) <= 80
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    public = {name for name in dir(fnloop) if not name.startswith("_")}
    assert public - packages == set(names) - packages


def test_each_name_has_one_home() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for name in table_of_contents():
        homes[name].append("fnloop")
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for family in FAMILIES:
        package = import_module(f"fnloop.{family}")
        files = {path.stem for path in (ROOT / family).iterdir()}
        for name in vars(package):
            if not name.startswith("_") and name not in files | packages:
                homes[name].append(f"fnloop.{family}")
    assert shared(homes) == {}


def test_the_families_are_there_after_one_import() -> None:
    code = (
        "import sys, fnloop as fl;"
        f"assert all(getattr(fl, name) is sys.modules['fnloop.' + name] for name in {FAMILIES});"
        "fl.testing.check_pure, fl.optim.adamw, fl.schedules.cosine, fl.metrics.accuracy;"
        "fl.trackers.CSV; assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""A module imports only from layers below its own, and importing fnloop stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fnloop

ROOT = Path(fnloop.__file__).parent
LAYERS = (
    "names",
    "_torch",
    "trees",
    "distributed",
    "values",
    "schedules",
    "optim",
    "stages",
    "rules",
    "schemes",
    "metrics",
    "data",
    "effects",
    "transforms",
    "store",
    "trackers",
    "loop",
    "replays",
    "profiling",
    "base",
    "errors",
    "tuning",
    "sklearn",
    "lightning",
    "testing",
    "cli",
)


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("fnloop."):
                yield name.split(".")[1]


def test_every_package_is_a_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(LAYERS)


def test_imports_point_downwards():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0]
        if own not in LAYERS:
            continue
        for other in imported_layers(path):
            if LAYERS.index(other) > LAYERS.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_heavy_dependencies_are_imported_only_when_used():
    code = (
        "import sys, fnloop;"
        "heavy = {'aim', 'matplotlib', 'sklearn', 'pandas', 'tensorboard', 'torchmetrics', "
        "'jsonargparse', 'pyarrow', 'opacus', 'mlflow', 'wandb', 'trackio', 'PIL',"
        "'pytorch_lightning'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

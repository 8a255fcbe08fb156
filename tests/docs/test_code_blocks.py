"""The code in README.md and docs/ runs, and prints what the pages say that it prints.

Each page runs in a process of its own, so that none relies on what another has imported;
`run_page.py` says how blocks are marked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from . import run_page
from .run_page import ROOT, agrees, blocks_of, commands, runs

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if any(map(runs, blocks_of(page)))]
ON_RAY = ROOT / "docs" / "how-to" / "ray.md"
# Warnings are errors, but for what Aim and SQLAlchemy say when they are imported.
WARNINGS = ("error", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def run(page: Path, folder: Path, **env: str) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__*"))
    options = [f"-W{each}" for each in WARNINGS]
    if sys.version_info >= (3, 13):
        options.append("-Wdefault:Aim cannot be imported")
    command = [sys.executable, *options, run_page.__file__, str(page)]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "page",
    [page for page in WITH_CODE if page != ON_RAY],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_page(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path)


@pytest.mark.ray
def test_page_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as place:  # paths of Ray's sockets are long
        run(ON_RAY, tmp_path, RAY_TMPDIR=place, RAY_AUTH_MODE="disabled")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 0.50\n", "loss  0.51", True),
        ("loss 0.50\n", "loss 0.52", False),
        ("loss 0.5012\n", "loss 0.5014", False),
        ("loss 0.5012...\n", "loss 0.50129999", True),
        ("loss 0.5012...\n", "loss 0.5014", False),
        ("loss 0.123456789", "loss 0.123456799", True),
        ("step 10", "step 11", False),
        ("a ... z", "a b c z", True),
        ("a ... z", "a b c", False),
        ("lr 1e-3", "lr 0.001", True),
        ("lr 1e-3", "lr 0.003", False),
        ("loss 0.5", "accuracy 0.5", False),
        ("loss 0.5", "loss nan", False),
    ],
)
def test_agrees(expected: str, printed: str, same: bool) -> None:
    assert agrees(expected, printed) is same


def test_commands() -> None:
    code = "pip install '.[examples]' && fnloop fit a.py \\\n  --lr 0.1  # train\naim up\n"
    assert commands(code) == [["fnloop", "fit", "a.py", "--lr", "0.1"]]

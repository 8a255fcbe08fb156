"""The first example that a newcomer meets."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
AIM = importlib.util.find_spec("aim") is not None
DIGITS = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.mark.filterwarnings("ignore:Aim cannot be imported:UserWarning")
def test_it_learns_the_digits(cli, numbers, curves):
    code, out, err = cli("fit", DIGITS, "--epochs", "10")
    assert code == 0, err
    found = numbers(out)
    assert set(found) == {"train", "val", "test"}
    assert found["test"]["accuracy"] >= 0.97
    assert ("aim up --repo runs" in out) is AIM
    assert Path("runs/digits/curves.png").stat().st_size > 10_000
    assert curves == ["loss", "accuracy", "adamw.lr"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Aim cannot be imported:UserWarning")
@pytest.mark.parametrize("seed", range(5))
def test_it_learns_them_whatever_the_seed(seed, cli, numbers):
    assert numbers(cli("fit", DIGITS, "--seed", seed)[1])["test"]["accuracy"] >= 0.98


@pytest.mark.slow
def test_it_runs_as_a_script(tmp_path):
    command = [sys.executable, str(DIGITS), "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits" / "config.yaml").exists()

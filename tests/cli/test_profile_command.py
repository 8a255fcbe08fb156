"""``fnloop profile``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_recipe_is_profiled(recipe, cli):
    options = ["--steps", "3", "--trace", "a/t.json", "--plot", "a/p.png", "--batch-size", "40"]
    code, out, err = cli("profile", recipe, *options)
    assert code == 0, err
    assert out.startswith("A step on cpu takes ") and "(mean of 3)" in out
    assert "loss, forward" in out and "ema(0.5)" in out and "model (Linear)" in out
    assert "trace  a/t.json, for https://ui.perfetto.dev" in out and "plot   a/p.png" in out
    assert json.loads(Path("a/t.json").read_text())["traceEvents"]
    assert Path("a/p.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(map(str, Path().rglob("*.*"))) == ["a/p.png", "a/t.json", "line.py"]


def test_a_recipe_with_steps_of_its_own(edited, cli):
    recipe = edited("note: str | None", "steps: int | None")
    code, out, err = cli("profile", recipe, "--steps", "3")
    assert code == 0 and "(mean of 10)" in out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which recipe? fnloop profile RECIPE.py"),
        (
            ["line.py", "--trace", "t.txt"],
            "--trace t.txt: expected a file called .json or .json.gz",
        ),
        (["line.py", "--plot", "t.txt"], "expected a file called .png, .pdf, .svg"),
        (["line.py", "--steps", "0"], "--steps 0: expected a number of steps, from 1 on"),
        (["line.py", "--step", "3"], "There is no flag --step"),
    ],
)
def test_a_wrong_command_line(recipe, cli, arguments, message):
    code, _, err = cli("profile", *arguments)
    assert code == 2 and message in err

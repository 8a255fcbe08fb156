"""``fnloop summary``."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.lightning("T23", "C8")
def test_the_summary_is_that_of_the_recipe_for_these_flags(recipe, cli):
    code, out, err = cli("summary", recipe, "--batch-size", "20", "--lr", "0.25")
    assert code == 0, err
    lines = out.splitlines()
    assert any(line.startswith("update(sgd(lr=0.25))") for line in lines)
    assert any("f32[20,1]" in line for line in lines if "Linear" in line)
    assert "FLOPs" in out and max(map(len, lines)) <= 80
    assert not Path("runs").exists()


def test_ranks_and_levels(edited, recipe, cli):
    code, out, _ = cli("summary", recipe, "--levels", "0")
    assert code == 0 and "Linear" in out
    code, _, err = cli("summary", recipe, "--ranks", "4")
    assert code == 1 and "fl.shard(step, mesh, plan)" in err
    sharded = edited("fl.ema(0.5))", "fl.ema(0.5))\n    step = fl.shard(step, fl.mesh())")
    code, out, err = cli("summary", sharded)
    assert code == 0 and "on each of" not in out, err
    code, out, err = cli("summary", sharded, "--ranks", "4")
    assert code == 0 and "on each of 4 ranks" in out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which recipe? fnloop summary RECIPE.py"),
        (["line.py", "--levels", "-1"], "--levels -1: expected a number from 0"),
        (["line.py", "--ranks", "0"], "--ranks 0: expected a number of processes from 1"),
    ],
)
def test_a_wrong_command_line(recipe, cli, arguments, message):
    code, _, err = cli("summary", *arguments)
    assert code == 2 and message in err

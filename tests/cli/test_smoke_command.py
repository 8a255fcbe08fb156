"""``fnloop fit --smoke``."""

from __future__ import annotations

from pathlib import Path

import pytest


def files():
    return sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.lightning("T8")
def test_everything_once_and_no_file(recipe, cli, numbers):
    before = files()
    code, out, _ = cli("fit", recipe, "--smoke", "--epochs", "1000")
    assert code == 0 and files() == before
    assert "smoke run: 2 batches trained, 2 batches predicted" in out
    assert set(numbers(out.split("Nothing")[0])) == {"train", "val", "test"}


def test_a_run_that_is_there_is_left_alone(trained, recipe, cli):
    before = {path: Path(path).stat().st_mtime_ns for path in files()}
    code, out, _ = cli("fit", recipe, "--smoke")
    assert code == 0 and "Nothing was written" in out
    assert {path: Path(path).stat().st_mtime_ns for path in files()} == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fl.validate(loss, data.validate", "fl.validate(lambda m, b: m(b), data.validate", "loss"),
        ('monitor="val/loss"', 'monitor="val/lost"', "val/lost"),
        ("predict=fl.Batches(x[200:], 16, shuffle=False)", "predict=fl.Batches(x, 16)", "predict"),
    ],
)
def test_what_would_fail_late_fails_at_once(edited, cli, old, new, message):
    recipe = edited(old, new)
    before = files()
    code, _, err = cli("fit", recipe, "--smoke")
    assert code == 1 and message in err and files() == before


def test_sets_by_name_have_a_line_each(edited, cli, numbers):
    recipe = edited(
        "validate=fl.Batches((x[160:200], y[160:200]), 16),",
        'validate={"low": fl.Batches((x[160:180], y[160:180]), 16), "high": [(x[180:], y[180:])]},',
    )
    text = Path(recipe).read_text().replace('monitor="val/loss"', 'monitor="val/low/loss"')
    Path(recipe).write_text(text)
    code, out, err = cli("fit", recipe, "--smoke")
    assert code == 0, err
    assert {"val/low", "val/high"} <= set(numbers(out.split("Nothing")[0]))
    assert cli("fit", recipe)[0] == 0
    code, out, _ = cli("validate", "runs/line")
    assert code == 0 and set(numbers(out)) == {"val/low", "val/high"}


def test_least_epochs_and_a_budget_are_the_recipes(edited, cli):
    recipe = edited("epochs=epochs,", "epochs=epochs, min_epochs=2, budget=600,")
    code, out, _ = cli("fit", recipe, "--early", "true", "--epochs", "9")
    assert code == 0 and "stopped: val/loss" in out
    assert "runs/line/step-00000010" in out


def test_a_budget_that_is_spent_says_how_to_go_on(edited, cli):
    recipe = edited("epochs=epochs,", "epochs=epochs, budget=budget,")
    recipe.write_text(
        recipe.read_text().replace("epochs: int = 3,", "epochs: int = 3, budget: float = 60,")
    )
    assert cli("fit", recipe)[0] == 0
    code, out, _ = cli(
        "resume", "runs/line", "--epochs", "9", "--budget", "0.001", "--early", "true"
    )
    assert code == 0
    assert "stopped: the time budget of 0.001 seconds" in out
    assert "fnloop resume runs/line --budget 0.002" in out

"""``--member``: a sweep's members, by the commands that read runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fnloop as fl
from fnloop.cli import sweep_folder
from fnloop.cli.config import Config
from fnloop.cli.runs import recipe_with
from fnloop.cli.sweep_folder import Sweep
from fnloop.cli.sweep_members import best_member
from fnloop.store.files import files_for
from fnloop.store.manifest import amend

FOLDER = Path("runs/line-sweep")
LISTS = {"lr": [0.01, 0.1]}


def squared(model, batch):
    """The loss of the recipe."""
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.fixture
def swept(recipe, cli):
    """The folder of a sweep of two rates from two seeds."""
    code, _, err = cli("sweep", recipe, "--lr", "0.01,0.1", "--seeds", "2", "--epochs", "2")
    assert code == 0, err
    return FOLDER


@pytest.fixture
def alone(recipe):
    """The recipe's step of the run alone that member 1 is."""
    return recipe_with(recipe, {"lr": 0.1, "epochs": 2, "folder": "runs/alone"})


def states_of(swept, alone):
    """The states of all members, as Python reads them."""
    many = fl.ensemble(fl.sweep(alone.step, {"sgd.lr": LISTS["lr"]}), 2)
    return many, fl.load(fl.latest(swept), like=many.init(alone.model))


def test_a_member_is_the_run_of_its_flags(swept, alone, cli, numbers):
    code, out, err = cli("validate", swept)
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["member", "lr", "seed", "val/loss"]
    assert [row[:3] for row in rows[1:]] == [
        ["0", "0.01", "0"], ["1", "0.1", "0"], ["2", "0.01", "1"], ["3", "0.1", "1"]
    ]  # fmt: skip
    losses = [float(row[3]) for row in rows[1:]]
    _, states = states_of(swept, alone)
    for i, loss in enumerate(losses):
        code, out, err = cli("validate", swept, "--member", i)
        assert code == 0 and f"\nmember {i} of 4: --lr {LISTS['lr'][i % 2]}, seed {i // 2}" in err
        assert numbers(out)["val"]["loss"] == pytest.approx(loss, rel=2e-3)
        own = fl.evaluate(squared, fl.member(states, i), alone.data.validate, "ema")
        assert loss == pytest.approx(own["loss"], rel=2e-3)
    best = cli("validate", swept, "--member", "best")
    assert f"member {losses.index(min(losses))} of 4" in best[2]
    assert (
        cli("validate", swept / "step-00000005", "--member", 1)[1]
        != cli("validate", swept, "--member", 1)[1]
    )


def test_weights_predictions_and_leaves_of_a_member(swept, alone, cli, recipe):
    _, states = states_of(swept, alone)
    own = fl.member(states, 3)
    arguments = ["export", swept, "--member", "3", "--params", "ema", "--output"]
    code, _, err = cli(*arguments, "with.safetensors")
    assert code == 0 and "member 3 of 4: --lr 0.1, seed 1" in err
    code, out, err = cli("predict", swept, "--member", "3", "--output", "own.npy")
    assert code == 0, err
    expected = list(fl.predict(lambda model, x: model(x), own, alone.data, "ema"))
    assert np.allclose(np.load("own.npy"), torch.cat(expected), rtol=1e-5)
    code, out, _ = cli("show", swept, "--member", "3")
    assert code == 0 and "config    sgd.lr=0.1," in out and "val/loss[" not in out
    assert "    weight                f32[1,2] " in out
    code, out, _ = cli("show", swept)
    assert code == 0 and "4; one of them: --member I" in out and "f32[4,1,2]" in out
    recipe.unlink()
    code, _, err = cli(*arguments, "without.safetensors")
    assert code == 0 and "without the recipe" in err
    for name in ("with", "without"):
        weights = load_file(f"{name}.safetensors")
        assert {n: torch.equal(t, own["ema"][n]) for n, t in weights.items()} == {
            "weight": True, "bias": True
        }  # fmt: skip


def test_members_are_compared_with_each_other_and_with_a_run(swept, recipe, cli):
    code, out, err = cli("diff", swept, swept, "--member", "0,3")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].endswith("step-00000010, member 0 of 4: --lr 0.01, seed 0")
    assert lines[1].endswith("step-00000010, member 3 of 4: --lr 0.1, seed 1")
    cells = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert cells["lr"] == cells["sgd.lr"] == ["0.01", "0.1"]
    assert cells["params/weight"][:2] == ["f32[1,2]", "f32[1,2]"] and "val/loss" in cells
    alike = cli("diff", swept, swept, "--member", "3")[1]
    assert "the same, to the bit" in alike and alike.count("member 3 of 4") == 2

    cli("fit", recipe, "--lr", "0.1", "--epochs", "2", "--folder", "runs/alone")
    code, out, err = cli("diff", "runs/alone", swept, "--member", "1")  # a run has no members
    assert code == 0, err
    assert "member 1 of 4: --lr 0.1, seed 0" in out.splitlines()[1]
    [change] = [line.split()[-4] for line in out.splitlines() if "of their norm" in line] or [0]
    assert float(change) < 1e-5

    code, _, err = cli("diff", "runs/alone", "runs/alone", "--member", "1")
    assert code == 2 and "--member 1 is for a sweep" in err
    code, _, err = cli("diff", swept, swept, "--member", "1,2,3")
    assert code == 2 and "of a, then of b" in err


def test_a_step_of_a_member_is_replayed(swept, alone, cli):
    code, out, err = cli("replay", swept, "--member", "2", "--step", "8", "--save", "a.safetensors")
    assert code == 0, err
    assert "step-00000005" in err and "member 2 of 4: --lr 0.01, seed 1" in err
    assert "Step 8, in epoch 2: taken." in out and "This is member 2 of 4, run alone" in out
    many, _ = states_of(swept, alone)
    before, (states, metrics) = list(
        fl.run(many, many.init(alone.model), alone.data.train, steps=8)
    )[6:]
    loss = float(next(line for line in out.splitlines() if line.startswith("loss ")).split()[1])
    assert loss == pytest.approx(float(metrics["loss"].value()[2]), rel=1e-5)
    saved = load_file("a.safetensors")
    assert torch.equal(saved["before/params/weight"], fl.member(before[0], 2).params["weight"])
    after = saved["after/params/weight"]
    assert torch.allclose(after, fl.member(states, 2).params["weight"], rtol=1e-5)
    code, _, err = cli("replay", swept, "--member", "2")
    assert code == 1 and "No step of this member was skipped" in err


def test_the_first_step_of_a_member_that_is_not_finite(recipe, cli):
    assert cli("sweep", recipe, "--lr", "0.01,1e25", "--epochs", "1")[0] == 0
    code, out, err = cli("replay", FOLDER, "--member", "1")
    assert code == 0 and "The first value that is not finite is in the loss." in out, err
    assert out.startswith("Step 2, ")  # the first one is taken from the weights of both
    code, _, err = cli("replay", FOLDER, "--member", "0")
    assert code == 1 and "No step of this member was skipped" in err


@pytest.mark.parametrize("how", ["compiled", "--loop", "--chunk=1"])
def test_however_members_are_computed(how, recipe, edited, cli):
    if how == "compiled":
        edited("fl.pipe(loss,", "fl.compile(fl.pipe(loss,")
        edited("fl.ema(0.5))", 'fl.ema(0.5)), backend="aot_eager")')
    own = [] if how == "compiled" else [how]
    assert cli("sweep", recipe, "--lr", "0.01,0.1", "--epochs", "1", *own)[0] == 0
    code, out, err = cli("validate", FOLDER, "--member", "1")
    assert code == 0, err
    assert cli("validate", FOLDER)[1].splitlines()[2].split()[-1] in out
    code, out, err = cli("replay", FOLDER, "--member", "1", "--step", "3")
    assert code == 0 and "Step 3, in epoch 1: taken." in out, err


@pytest.mark.parametrize("command", ["predict", "replay", "export --output a.pt"])
def test_without_a_member(command, swept, cli):
    name, *more = command.split()
    code, _, err = cli(name, swept, *more)
    assert code == 2
    assert err.splitlines() == [
        f"fnloop {name}: runs/line-sweep has 4 members, and this is for one of them: --member I, "
        "with I from 0 to 3, or --member best.",
        "member    lr  seed",
        "     0  0.01     0",
        "     1   0.1     0",
        "     2  0.01     1",
        "     3   0.1     1",
    ]
    code, _, err = cli(name, swept, *more, "--member", "4")
    assert code == 2 and "There is no member 4: there are 4, from 0 to 3." in err
    code, _, err = cli(name, swept, *more, "--member", "two")
    assert code == 2 and "--member two: expected a number, from 0 to 3, or best." in err
    assert not Path("a.pt").exists()


def test_a_run_alone_has_no_members(trained, cli):
    for name, *more in (["test"], ["predict"], ["replay"], ["show"], ["export", "--output=a.pt"]):
        code, _, err = cli(name, trained, "--member", "best", *more)
        assert code == 2 and "--member best is for a sweep, and runs/line" in err, name
    code, _, err = cli("resume", trained, "--member", "1")
    assert code == 2 and "There is no flag --member" in err


def test_a_sweep_goes_on_as_a_whole(edited, cli):
    recipe = edited("epochs: int = 3", "epochs: int = 3, words: list[str] | None = None")
    given = ["--lr", "0.01,0.1", "--words", "['a b', c]", "--note", "x y", "--epochs", "1"]
    assert cli("sweep", recipe, *given, "--chunk", "1", "--seeds", "2")[0] == 0
    code, _, err = cli("resume", FOLDER, "--member", "1")
    assert code == 2 and "whose 4 members go on together" in err
    _, *again = shlex.split(err.splitlines()[1])
    code, _, err = cli(*again)
    assert code == 0 and "resumed from" in err and "words=['a b', 'c']" in err, err
    Path("elsewhere").mkdir()
    FOLDER.rename("elsewhere/moved")
    Path("line.py").rename("elsewhere/recipe.py")
    code, _, err = cli("test", "elsewhere/moved", "--member", "1")
    assert code == 2 and "The recipe of this run is gone" in err and "--recipe FILE.py" in err
    again = ["test", "elsewhere/moved", "--member", "1", "--recipe", "elsewhere/recipe.py"]
    assert cli(*again)[0] == 0


def test_numbers_that_a_recipe_no_longer_has(swept, cli, edited):
    edited("fl.optim.sgd(lr)", "fl.optim.adam(lr)")
    code, _, err = cli("test", swept)
    assert code == 1 and "The recipe has changed since this sweep was trained" in err, err
    assert "sgd.lr" in err


def test_the_best_is_the_first_of_the_table_or_of_the_latest_checkpoint(swept, edited, cli):
    newest = fl.latest(swept)
    best = best_member(swept, newest, 4)
    (swept / "sweep.csv").unlink()
    assert best_member(swept, newest, 4) == best in (1, 3)
    amend(newest, files_for(newest), monitor=None)  # as where a sweep is interrupted in an epoch
    assert f"\nmember {best} of 4" in cli("test", swept, "--member", "best")[2]
    assert best_member(swept, None, 4) is None
    recipe = edited(', monitor="val/loss"', "")
    assert cli("sweep", recipe, "--lr", "0.01,0.1", "--folder", "runs/b", "--epochs", "1")[0] == 0
    assert cli("test", "runs/b", "--member", "best")[0] == 0
    Path("runs/b/sweep.csv").unlink()
    code, _, err = cli("test", "runs/b", "--member", "best")
    assert code == 2 and "the best of runs/b is not known" in err and "from 0 to 1" in err


def test_a_population_that_python_has_trained(cli):
    loss = lambda model, x: (model(x) - 1).square().mean()  # noqa: E731
    many = fl.ensemble(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), 3)
    states = many.init(lambda: torch.nn.Linear(2, 1))
    fl.save(states, "runs/own")
    code, _, err = cli("export", "runs/own", "--output", "a.safetensors")
    assert code == 2 and "has 3 members, and this is for one" in err
    assert cli("export", "runs/own", "--output", "a.safetensors", "--member", "2")[0] == 0
    weight = fl.member(states, 2).params["weight"]
    assert torch.equal(load_file("a.safetensors")["weight"], weight)
    code, out, _ = cli("show", "runs/own", "--member", "2")
    assert code == 0 and "f32[1,2]" in out and "  cursor                    i64[3] " in out


def test_the_file_of_a_sweep_is_read_as_it_was_written(tmp_path):
    flags = {"lr": 0.1, "text": "${lr}", "nan": float("nan"), "folder": "runs/a"}
    sweep = Sweep(tmp_path / "r.py", flags, {"wd": [0, 1], "lr": [0.1, 1e-30]}, [3, 4], {"a.b": []})
    sweep.write(tmp_path / "runs")
    again = sweep_folder.sweep_in(tmp_path / "runs")
    assert again is not None and repr(again) == repr(sweep)
    assert again.goes_on_with(sweep) and list(again.lists) == ["wd", "lr"]
    assert again.about(6) == "member 6 of 8: --wd 1 --lr 0.1, seed 4"
    file = tmp_path / "runs" / "sweep.yaml"
    file.write_text(file.read_text().replace("seeds:", "sead:"))
    with pytest.raises(Exception, match="does not tell of a sweep: it lacks seeds"):
        sweep_folder.sweep_of(Config(file))

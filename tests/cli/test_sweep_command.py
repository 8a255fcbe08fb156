"""``fnloop sweep``: a recipe's flags as a population."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

import fnloop as fl

FOLDER = Path("runs/line-sweep")


@pytest.fixture
def two(edited):
    """A recipe with a weight decay, and a number of the model."""
    edited("lr: float = 0.05", "lr: float = 0.05, wd: float = 0.0, scale: float = 1.0")
    edited("fl.optim.sgd(lr)", "fl.optim.sgd(lr, weight_decay=wd)")
    return edited("torch.nn.Linear(2, 1)", "torch.nn.Linear(2, int(scale))")


def rows_of(text):
    """The rows of the printed table, by column."""
    lines = iter(text.splitlines())
    names = next(line.split() for line in lines if line.endswith("val/loss"))
    found = []
    for line in lines:
        if not line:
            return found
        found.append(dict(zip(names, map(float, line.split()), strict=True)))
    return found


def test_members_are_the_runs_of_fit(recipe, cli, numbers):
    code, out, err = cli("sweep", recipe, "--lr", "0.001,0.03,0.01", "--epochs", "2")
    assert code == 0, err
    assert "sgd.lr: 0.001, 0.03, 0.01" in err and "lr=0.001,0.03,0.01" in err
    rows = rows_of(out)
    assert [row["lr"] for row in rows] == [0.03, 0.01, 0.001]  # best first
    assert re.search(r"^best +--lr 0.03$", out, re.MULTILINE)
    assert "the largest --lr of the list" in out
    for row in rows:
        again = ["--epochs", "2", "--lr", row["lr"], "--folder", f"runs/{row['lr']}"]
        _, single, _ = cli("fit", recipe, *again)
        assert numbers(single)["val"]["loss"] == pytest.approx(row["val/loss"], rel=1e-3)
    with (FOLDER / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["member"], row["lr"]) for row in table] == [
        ("0", "0.001"), ("1", "0.03"), ("2", "0.01")
    ]  # fmt: skip
    assert not Path("runs/line").exists()


def test_a_grid_with_seeds_and_a_map(two, cli):
    arguments = ["--lr", "0.01,0.1", "--wd=0,0.1", "--seeds", "2", "--plot", "a/map.png"]
    code, out, err = cli("sweep", two, *arguments, "--epochs", "1", "--folder", "runs/own")
    assert code == 0, err
    rows = rows_of(out)
    assert len(rows) == 8 and {row["seed"] for row in rows} == {0, 1}
    means = {}
    for row in rows:
        place = row["lr"], row["wd"]
        means[place] = means.get(place, 0) + row["val/loss"] / 2
    lr, wd = min(means, key=means.get)
    assert f"best   --lr {lr} --wd {wd}  (mean of 2 seeds" in out
    assert Path("a/map.png").read_bytes()[:4] == b"\x89PNG"
    assert fl.latest("runs/own") is not None


def test_a_sweep_is_resumed_to_the_bit(recipe, cli, edited):
    arguments = ["sweep", recipe, "--lr", "0.01,0.1"]
    assert cli(*arguments, "--folder", "runs/whole")[0] == 0
    edited("epochs=epochs", "epochs=1")
    assert cli(*arguments)[0] == 0
    code, _, err = cli(*arguments)
    assert code == 2 and "has a run already" in err and "--resume" in err
    code, _, err = cli("sweep", recipe, "--lr", "0.01,0.2", "--resume")
    assert code == 2 and "another run than this sweep" in err
    edited("epochs=1", "epochs=epochs")
    code, _, err = cli(*arguments, "--resume")
    assert code == 0 and "resumed from" in err
    code, out, _ = cli("diff", "runs/whole", FOLDER)
    assert code == 0 and "leaves differ" not in out, out
    assert cli("sweep", recipe, "--lr", "0.01,0.2", "--overwrite", "--epochs", "1")[0] == 0


def test_the_order_of_lists_numbers_the_members(two, cli):
    lists = ["--wd", "0,0.5", "--lr", "0.01,0.1"]
    code, out, err = cli("sweep", two, *lists, "--epochs", "1")
    assert code == 0, err
    placed = {row["member"]: (row["wd"], row["lr"]) for row in rows_of(out)}
    assert [placed[i] for i in range(4)] == [(0, 0.01), (0, 0.1), (0.5, 0.01), (0.5, 0.1)]
    # Resumed, member 1 would go on with the rate of member 2.
    code, _, err = cli("sweep", two, *lists[2:], *lists[:2], "--epochs", "1", "--resume")
    assert code == 2 and "another run than this sweep" in err


def test_a_run_alone_and_a_sweep_do_not_take_the_folder_of_each_other(recipe, cli):
    lists = ["--lr", "0.01,0.1", "--epochs", "1"]
    assert cli("sweep", recipe, *lists, "--folder", "runs/line")[0] == 0
    for more in ([], ["--resume"]):
        code, _, err = cli("fit", recipe, *more)
        assert code == 2 and "has a sweep of 2 members" in err
        assert err.rstrip().endswith(
            "fnloop sweep line.py --lr 0.01,0.1 --epochs 1 --folder runs/line --resume"
        )
    assert cli("fit", recipe, "--overwrite", "--epochs", "1")[0] == 0
    assert cli("test", "runs/line")[1].count("\n") == 2
    assert cli("sweep", recipe, *lists, "--folder", "runs/line", "--overwrite")[0] == 0
    assert cli("test", "runs/line")[1].count("\n") == 3


def test_seeds_alone_in_a_folder_that_is_a_path(edited, cli):
    recipe = edited('folder: str = "runs/line"', 'folder: Path = Path("runs") / "line"')
    edited("import os", "from pathlib import Path")
    edited("checkpoint(folder,", 'checkpoint(folder / ".",')
    code, out, err = cli("sweep", recipe, "--seeds", "5", "--epochs", "1")
    assert code == 0 and "5 seeds" in err
    assert sorted(row["seed"] for row in rows_of(out)) == [0, 1, 2, 3, 4]
    assert re.search(r"^best +val/loss \S+, with a deviation of \S+$", out, re.MULTILINE)


def test_what_is_monitored_decides(edited, cli):
    edited(
        "return (model(x) - y).square().mean()",
        """error = (model(x) - y).square().mean()
    return error, {"score": -error}""",
    )
    recipe = edited('monitor="val/loss"', 'monitor="val/score", mode="max"')
    code, out, err = cli("sweep", recipe, "--lr", "0.1,0.01,1e30", "--epochs", "1")
    assert code == 0, err
    assert "largest val/score first" in out and re.search(r"best +--lr 0.1$", out, re.MULTILINE)
    table = out[out.index("first") :].splitlines()[1:5]
    assert [line.split()[1] for line in table[1:]] == ["0.1", "0.01", "1e+30"]  # nan is last
    assert table[-1].split()[2:] == ["nan", "nan"]
    with (FOLDER / "sweep.csv").open() as file:
        assert [row["rank"] for row in csv.DictReader(file)] == ["1", "2", ""]


def test_a_step_that_cannot_be_vmapped_is_trained_in_a_loop(edited, cli):
    looking = "float(model(x).detach().sum())"
    recipe = edited("    x, y = batch\n", f"    x, y = batch\n    {looking}\n")
    arguments = ["sweep", recipe, "--lr", "0.01,0.1", "--epochs", "1"]
    code, _, err = cli(*arguments)
    assert code == 1 and "takes the batch alone" in err and "--loop" in err
    code, out, err = cli(*arguments, "--loop")
    assert code == 0, err
    assert len(rows_of(out)) == 2
    edited(looking, "raise RuntimeError('no')")
    code, _, err = cli(*arguments, "--overwrite")
    assert code == 1 and "vmapped" not in err and "RuntimeError: no" in err


def test_a_recipe_without_validation_is_judged_by_its_loss(edited, cli, numbers):
    edited("step, model, data, callbacks,", "step, model, data.train, [],")
    recipe = edited("folder=folder)", "folder=None)")
    code, out, err = cli("sweep", recipe, "--lr", "0.01,0.1", "--epochs", "2", "--chunk", "1")
    assert code == 0, err
    assert "last state, smallest train/loss first" in out and "--lr 0.1" in out
    table = out[out.index("member") :].splitlines()[1:3]
    found = {lr: float(loss) for _, lr, loss in map(str.split, table)}
    for lr in found:  # as fit shows the last state, not a mean over the last epoch
        _, single, _ = cli("fit", recipe, "--lr", lr, "--epochs", "2")
        assert numbers(single)["train"]["loss"] == pytest.approx(found[lr], rel=1e-3)
    assert not Path("runs").exists()


def test_without_validation_a_monitored_metric_of_training_decides(edited, cli):
    edited(
        "return (model(x) - y).square().mean()",
        """error = (model(x) - y).square().mean()
    return error, {"score": error.detach()}""",
    )
    edited("step, model, data, callbacks,", "step, model, data.train, callbacks[1:],")
    recipe = edited('monitor="val/loss"', 'monitor="score", mode="max"')
    code, out, err = cli("sweep", recipe, "--lr", "0.1,0.01", "--epochs", "1")
    assert code == 0, err
    assert "last state, largest train/score first" in out
    assert re.search(r"best +--lr 0.01$", out, re.MULTILINE)


def test_before_an_epoch_has_ended_the_losses_are_those_of_training(edited, cli):
    edited("step, model, data, callbacks, epochs=epochs", "step, model, data.train, [], steps=2")
    recipe = edited("folder=folder)", "folder=None)")
    code, out, err = cli("sweep", recipe, "--lr", "0.01,0.1")
    assert code == 0, err
    assert "last report of training, smallest train/loss first" in out


def test_negative_numbers(edited, cli):
    recipe = edited("fl.optim.sgd(lr)", "fl.optim.sgd(10**lr)")
    code, out, err = cli("sweep", recipe, "--lr", "-3,-1.5e0", "--epochs", "1")
    assert code == 0, err
    assert re.search(r"^ +1 +-1.5 .*\n +0 +-3 ", out, re.MULTILINE), out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which recipe? fnloop sweep RECIPE.py"),
        (["line.py"], "Nothing is swept: give a flag a list of numbers, as in fnloop sweep"),
        (["line.py", "--note", "a,b"], "--note takes text, so its commas are a part of it"),
        (["line.py", "--lr", "0.1,x"], "--lr 0.1,x: a sweep takes numbers"),
        (["line.py", "--lr", "0.1,", "0.2"], "nothing stands where a number is expected"),
        (["line.py", "--lr", "0.1,0.1"], "a number is there twice"),
        (["line.py", "--early", "true,false"], "'true' is none. The flag takes bool"),
        (["line.py", "--epochs", "3,6"], "more than numbers of the step, epochs (3, 6)"),
        (["line.py", "--scale", "1,2"], "model.scale (1.0, 2.0)"),
        (["line.py", "--batch-size", "8,16"], "data.train.batch_size (8, 16)"),
        (["line.py", "--lr", "0.1,0.2", "--seeds", "0"], "--seeds takes a number of runs"),
        (["line.py", "--lr", "0.1,0.2", "--chunk", "0"], "--chunk takes a number of members, 1 or"),
        (["line.py", "--seeds", "2", "--plot", "a.png"], "one or two swept flags, and 0 are"),
        (["line.py", "--lr", "1,2", "--plot", "a.txt"], "expected a file called .png"),
        (["line.py", "--lr", "1,2", "--idle", "3"], "There is no flag --idle"),
    ],
)
def test_a_wrong_command_line(two, cli, arguments, message):
    code, _, err = cli("sweep", *arguments)
    assert code == 2 and message in err, err
    assert not Path("runs").exists()


def test_a_flag_that_sets_nothing(two, cli, edited):
    edited("int(scale)", "1")
    code, _, err = cli("sweep", two, "--scale", "1,2")
    assert code == 2 and "--scale sets no number of the step" in err and "sgd.lr" in err


def test_numbers_that_follow_from_several_flags(two, cli, edited):
    edited("sgd(lr, weight_decay=wd)", "sgd(lr, weight_decay=lr * wd)")
    edited("int(scale)", "1")
    code, _, err = cli("sweep", two, "--wd", "0,0.5", "--lr", "0.1,0.2", "--epochs", "1")
    assert code == 0, err
    text = next(FOLDER.glob("history.csv")).read_text().splitlines()
    last = dict(zip(text[0].split(","), text[-1].split(","), strict=True))
    decays = [float(last[f"sgd.weight_decay[{i}]"]) for i in range(4)]
    assert decays == pytest.approx([0, 0, 0.05, 0.1])

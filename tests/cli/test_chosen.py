"""Classes that are chosen for flags, on the command line and in configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from fnloop.cli.app import main
from fnloop.cli.yaml_dialect import load

RECIPE = '''
from collections.abc import Callable

import torch
from torch import nn

import fnloop as fl


class Net(nn.Module):
    """A perceptron.

    Args:
        width: Hidden units.
    """

    def __init__(self, width: int = 8, drop: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Dropout(drop), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def recipe(
    model: Callable[[], nn.Module] = Net,
    optimizer: fl.optim.Optimizer = fl.optim.sgd(0.1, momentum=0.9),
    callbacks: list[fl.base.Callback] | None = None,
    rate: float | fl.schedules.Schedule = 1.0,
    rows: int = 8,
    folder: str = "runs/a",
) -> fl.Recipe:
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    data = fl.Batches((x, (x[:, 0] > 0).long()), rows)
    optimizer = fl.optim.chain(fl.optim.scale_by(rate), optimizer)
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    others = [*(callbacks or []), fl.checkpoint(folder)]
    return fl.Recipe(step, model, data, others, epochs=2, folder=folder)
'''

BESIDE = """
from torch import nn


class Deep(nn.Sequential):
    def __init__(self, width: int, layers: int = 2):
        middle = [nn.Linear(width, width) for _ in range(layers)]
        super().__init__(nn.Linear(2, width), *middle, nn.Linear(width, 2))
"""

CONFIG = """
recipe: r.py
model:
  class_path: Net
  init_args: {width: 16}
optimizer:
  class_path: fl.optim.adamw
  init_args:
    lr: 0.1
    weight_decay: 0.5
rate:
  class_path: fl.schedules.cosine
  init_args: {peak: 1.0, steps: 8}
callbacks:
- class_path: fl.early_stopping
  init_args: {monitor: loss, patience: 1}
"""


@pytest.fixture(autouse=True)
def files():
    Path("r.py").write_text(RECIPE)
    Path("beside.py").write_text(BESIDE)
    Path("c.yaml").write_text(CONFIG)


def printed(capsys, *arguments):
    """The configuration that the arguments of ``fit`` make."""
    assert main(["fit", *arguments, "--print-config"]) == 0, capsys.readouterr().err
    return load(capsys.readouterr().out)


def refused(capsys, *arguments):
    """The error."""
    assert main(["fit", *arguments, "--print-config"]) == 2
    return capsys.readouterr().err


@pytest.mark.lightning("I3")
@pytest.mark.parametrize("name", ["Net", "r.Net"])
def test_a_class_of_the_recipe_goes_by_its_name(capsys, name):
    found = printed(capsys, "r.py", "--model", name, "--model.width", "4")
    assert found["model"] == {"class_path": "Net", "init_args": {"width": 4, "drop": 0.0}}


def test_arguments_of_the_default_class_alone(capsys):
    found = printed(capsys, "r.py", "--model.width=4", "--optimizer.lr=0.5")
    assert found["model"] == {"class_path": "Net", "init_args": {"width": 4, "drop": 0.0}}
    own = found["optimizer"]["init_args"]
    assert (own["lr"], own["momentum"], own["name"]) == (0.5, 0.9, "sgd")


def test_a_sweep_tells_of_a_class_as_of_its_call(cli):
    code, _, err = cli("sweep", "r.py", "--model.width", "4", "--seeds", "2")
    assert code == 0 and "model=Net(width=4, drop=0.0)" in err, err


def test_a_class_of_a_module_beside_it(capsys):
    found = printed(capsys, "r.py", "--model", "beside.Deep", "--model.width", "4")
    assert found["model"] == {"class_path": "beside.Deep", "init_args": {"width": 4, "layers": 2}}


@pytest.mark.lightning("I4")
@pytest.mark.parametrize("name", ["fl.optim.adamw", "fnloop.optim.adamw", "adamw"])
def test_another_class_takes_nothing_over_from_the_one_before(capsys, name):
    own = printed(capsys, "r.py", "--optimizer", name)["optimizer"]["init_args"]
    assert (own["lr"], own["weight_decay"], own["name"]) == (1e-3, 0.01, "adamw")
    own = printed(capsys, "--config", "c.yaml", "--optimizer", "lion")["optimizer"]["init_args"]
    assert (own["weight_decay"], own["name"]) == (0.0, "lion")


def test_arguments_of_the_class_in_a_configuration_stay(capsys):
    own = printed(capsys, "--config", "c.yaml", "--optimizer.b1", "0.5")["optimizer"]["init_args"]
    assert (own["b1"], own["weight_decay"], own["lr"]) == (0.5, 0.5, 0.1)
    whole = "{class_path: adamw, init_args: {lr: 2.0}}"
    own = printed(capsys, "--config", "c.yaml", "--optimizer", whole)["optimizer"]["init_args"]
    assert (own["lr"], own["weight_decay"]) == (2.0, 0.5)


def test_a_class_goes_only_where_a_type_allows_it(capsys):
    whole = "{class_path: adamw, init_args: {lr: {class_path: builtins.print}}}"
    assert main(["fit", "r.py", "--optimizer", whole]) == 1
    found = printed(capsys, "--config", "c.yaml", "--rate.peak", "2")["rate"]
    assert found["class_path"].endswith("cosine") and found["init_args"]["peak"] == 2.0
    assert "Schedule" in refused(capsys, "r.py", "--rate", "Net")


def test_configurations_are_put_together(capsys):
    Path("more.yaml").write_text("rows: 4\nmodel: {class_path: Net, init_args: {drop: 0.5}}\n")
    found = printed(capsys, "--config", "c.yaml", "--config", "more.yaml")
    assert found["rows"] == 4
    assert found["model"]["init_args"] == {"width": 16, "drop": 0.5}
    assert found["optimizer"]["class_path"].endswith("adamw")


def test_values_are_linked_by_anchors(capsys):
    Path("linked.yaml").write_text("rows: &n 6\nmodel: {class_path: Net, init_args: {width: *n}}\n")
    found = printed(capsys, "r.py", "--config", "linked.yaml")
    assert found["rows"] == found["model"]["init_args"]["width"] == 6


def test_a_run_goes_on_with_what_was_chosen(capsys):
    assert main(["fit", "--config", "c.yaml", "--rows", "16"]) == 0
    told = capsys.readouterr().err
    assert "model=Net(width=16, drop=0.0)" in told and "patience=1" in told
    written = load(Path("runs/a/config.yaml").read_text())
    assert written["model"] == {"class_path": "Net", "init_args": {"width": 16, "drop": 0.0}}
    assert main(["resume", "runs/a"]) == 0
    assert main(["show", "runs/a"]) == 0
    assert "model=Net(width=16" in capsys.readouterr().out.replace("\n          ", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.widt", "3"],
            "--model: Net has no argument 'widt'. Did you mean 'width'? It has: width, drop.",
        ),
        (["--model.width", "x"], "--model.width takes int, got 'x'."),
        (["--model", "Nets"], "--model: there is no class 'Nets'. A class of the recipe's file"),
        (["--model", "beside.Deap"], "--model: there is no class 'beside.Deap'."),
        (["--optimizer", "Net"], "--optimizer takes fnloop.optim.base.Optimizer, and Net is none"),
        (["--model", "beside.Deep"], "--model: beside.Deep needs its argument 'width'"),
    ],
)
def test_what_is_wrong_with_a_choice(capsys, arguments, message):
    assert message in refused(capsys, "r.py", *arguments)


def test_an_error_in_a_configuration_names_the_line(capsys):
    Path("wrong.yaml").write_text("rows: 4\nmodel: {class_path: Net, init_args: {deep: 1}}\n")
    told = refused(capsys, "r.py", "--config", "wrong.yaml")
    assert "wrong.yaml:2: model: Net has no argument 'deep'." in told


def test_the_help_of_a_class_and_of_the_recipe(capsys):
    assert main(["fit", "r.py", "--model.help", "Net"]) == 0
    assert "Hidden units. (type: int, default: 8)" in capsys.readouterr().out
    assert main(["fit", "r.py", "--help"]) == 0
    assert "known subclasses" not in capsys.readouterr().out


@pytest.mark.lightning("I2")
def test_flags_from_environment_variables_that_are_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("TRAIN_ROWS", "4")
    monkeypatch.setenv("TRAIN_MODEL__WIDTH", "5")
    assert printed(capsys, "r.py")["rows"] == 8
    found = printed(capsys, "--config", "c.yaml", "--env", "TRAIN")
    assert (found["rows"], found["model"]["init_args"]["width"]) == (4, 5)
    assert printed(capsys, "r.py", "--env", "TRAIN", "--rows", "2")["rows"] == 2
    monkeypatch.setenv("TRAIN_ROW", "4")
    told = refused(capsys, "r.py", "--env", "TRAIN")
    assert "TRAIN_ROW is no flag. Did you mean TRAIN_ROWS?" in told

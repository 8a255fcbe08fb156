"""A recipe small enough to be trained in a moment."""

from __future__ import annotations

import re

import pytest

from fnloop.cli.app import main
from fnloop.loop.history import History

RECIPE = '''
import os

import torch
import fnloop as fl
from fnloop.cli.recipe import Recipe


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def recipe(lr: float = 0.05, batch_size: int = 32, epochs: int = 3, folder: str = "runs/line",
           early: bool = False, note: str | None = None) -> Recipe:
    """Fit a line.

    Args:
        lr: The rate of learning.
        batch_size: Examples in a batch.
        epochs: How long.
        folder: The place of the run.
    """
    make = torch.Generator().manual_seed(0)
    x = torch.randn(240, 2, generator=make)
    y = x @ torch.tensor([[1.0], [-2.0]]) + 0.5
    data = fl.Data(
        train=fl.Batches((x[:160], y[:160]), batch_size),
        validate=fl.Batches((x[160:200], y[160:200]), 16),
        test=fl.Batches((x[200:], y[200:]), 16),
        predict=fl.Batches(x[200:], 16, shuffle=False),
    )
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr)), fl.ema(0.5))
    callbacks = [
        fl.every(1, fl.validate(loss, data.validate, params="ema"), unit="epoch"),
        fl.checkpoint(folder, monitor="val/loss"),
    ]
    if early:
        callbacks.append(fl.early_stopping("val/loss", patience=1, min_delta=1e9))
    model = lambda: torch.nn.Linear(2, 1)
    return Recipe(step, model, data, callbacks, epochs=epochs, params="ema", folder=folder)
'''


NESTED = (
    RECIPE.replace("import os\n", "import dataclasses\nimport os\n")
    .replace(
        "def loss(",
        "@dataclasses.dataclass\nclass Opt:\n    lr: float = 0.05\n    momentum: float = 0.5\n\n\n"
        "def loss(",
    )
    .replace("lr: float = 0.05, batch", "opt: Opt = Opt(), batch")
    .replace("        lr: The rate of learning.\n", "        opt: The optimizer's numbers.\n")
    .replace("fl.optim.sgd(lr)", "fl.optim.sgd(opt.lr, momentum=opt.momentum)")
)
"""The same with the learning rate in a flag of two parts."""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """The paths of recipes and runs are relative to an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_curves(request, monkeypatch):
    """Drawing takes most of a second; tests that look at the curves ask for `curves`."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr(History, "plot", lambda *arguments: None)


@pytest.fixture
def curves(monkeypatch):
    """The titles of the panels that are drawn."""
    drawn, plot = [], History.plot

    def spy(history, path):
        figure = plot(history, path)
        drawn.extend(axes.get_title("left") for axes in figure.axes)
        return figure

    monkeypatch.setattr(History, "plot", spy)
    return drawn


@pytest.fixture
def recipe(tmp_path):
    """The recipe file."""
    file = tmp_path / "line.py"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def edited(recipe):
    """Change the recipe file: ``edited(old, new)``."""

    def edit(old, new):
        text = recipe.read_text()
        assert old in text
        recipe.write_text(text.replace(old, new))
        return recipe

    return edit


@pytest.fixture
def cli(capsys):
    """Run a command: ``cli("fit", "line.py") -> (code, stdout, stderr)``."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def trained(recipe, cli):
    """The folder of a run of three epochs."""
    code, _, err = cli("fit", recipe)
    assert code == 0, err
    return recipe.parent / "runs" / "line"


@pytest.fixture
def numbers():
    """The rows of a printed table of metrics: part -> name -> number."""

    def read(text):
        lines = text.splitlines()
        head = next(i for i, line in enumerate(lines) if re.match(r"^ +loss", line))
        names = lines[head].split()
        rows = (line.split() for line in lines[head + 1 :] if line)
        return {row[0]: dict(zip(names, map(float, row[1:]), strict=True)) for row in rows}

    return read

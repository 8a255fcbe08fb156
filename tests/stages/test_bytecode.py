"""What Python runs in an eager step does not grow with the number of parameters."""

import collections
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from tests.instructions import instructions

FILES = frozenset(map(str, Path(fl.__file__).parent.rglob("*.py")))
OPTIMIZERS = {
    "adamw": fl.optim.adamw(1e-3),
    "sgd": fl.optim.sgd(0.1, momentum=0.9),
    "clipped": fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-3)),
}


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def net(layers):
    return nn.Sequential(
        *[part for _ in range(layers) for part in (nn.Linear(8, 8), nn.BatchNorm1d(8))]
    )


def run_in(step, model):
    """How many instructions of fnloop's run in a step, by function."""
    state, batch = step.init(model), (torch.ones(16, 8), torch.zeros(16, 8))
    donating, found = step.donating(), collections.Counter()
    for _ in range(5):  # the fourth is looked at closely
        state, _ = donating(state, batch)

    def note(code, at):
        found[code.co_qualname] += 1

    with instructions(FILES, note):
        state, _ = donating(state, batch)
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_more_parameters_take_no_more_instructions(optimizer):
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    few, many = (run_in(step, net(layers)) for layers in (4, 12))
    assert few and many - few == {}

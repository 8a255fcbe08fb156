from __future__ import annotations

import numpy as np
import pytest
import torch

import fnloop as fl
from fnloop.cli.recipe import Recipe


def _step():
    return fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))


def test_it_is_in_the_table_of_contents():
    assert fl.Recipe is Recipe


def test_it_is_frozen():
    recipe = Recipe(_step(), torch.nn.Linear(1, 1), [torch.ones(2, 1)], epochs=1)
    with pytest.raises(AttributeError):
        recipe.epochs = 2  # type: ignore[misc]


def test_a_loss_for_a_step():
    with pytest.raises(TypeError, match=r"takes a training step, fl.pipe\(loss, fl.grad"):
        Recipe(lambda model, batch: 0, torch.nn.Linear(1, 1), [])


def test_one_callback_for_a_list():
    with pytest.raises(TypeError, match="takes a list, got a progress"):
        Recipe(_step(), torch.nn.Linear(1, 1), [], fl.progress())  # type: ignore[arg-type]


def test_counts_may_be_numpys_or_torchs():
    numbers = {"epochs": np.int64(3), "steps": torch.tensor(4), "seed": np.uint8(5)}
    recipe = Recipe(_step(), torch.nn.Linear(1, 1), [], **numbers)
    found = (recipe.epochs, recipe.steps, recipe.seed)
    assert found == (3, 4, 5) and {type(number) for number in found} == {int}


@pytest.mark.parametrize("value", [1.5, "3", np.float32(2.0)])
def test_other_counts_are_refused(value):
    with pytest.raises(TypeError, match=r"Recipe\(epochs=.* whole number of at least 0, got "):
        Recipe(_step(), torch.nn.Linear(1, 1), [], epochs=value)

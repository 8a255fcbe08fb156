"""A model that changes its classes is told, since nothing there can be put back."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import fnloop as fl

STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))


def append(model):
    model.history.append(1)


def assign(model):
    type(model).calls += 1


def cached(model):
    model.scale(2)


def put(model):
    model.cache["x"] = 2


@pytest.mark.parametrize(
    ("act", "name"), [(append, "history"), (assign, "calls"), (put, "cache"), (cached, "scale")]
)
def test_changes_of_a_class_are_told_once(act, name):
    class Base(nn.Linear):
        history, calls, cache = [], 0, {"x": 1}

    class Net(Base):
        calls = 0

        @functools.lru_cache  # noqa: B019
        def scale(self, x):
            return self.weight.sum() * x

        def forward(self, x):
            act(self)
            return super().forward(x)

    x, state = torch.ones(2, 3), STEP.init(Net(3, 1))
    owner = "Net" if act in (assign, cached) else "Base"
    with pytest.warns(UserWarning, match=rf"attributes of its classes .*: {owner}\.{name}\."):
        STEP(state, x)
    for _ in range(4):
        STEP(state, x)

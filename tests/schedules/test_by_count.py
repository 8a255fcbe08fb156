"""Settings by epoch and by step."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl
from fnloop.schedules.by_count import settings

by_epoch, by_step = fl.schedules.by_epoch, fl.schedules.by_step


def test_each_setting_holds_from_its_count_on_and_before_the_first_none():
    found = by_epoch({5: "c", 1: "a", 2: "b"})
    assert [found.at(i) for i in range(7)] == [None, "a", "b", "b", "b", "c", "c"]
    assert settings(found) == [None, "a", "b", "c"]
    assert settings(by_epoch({0: "a", 1: "b"})) == ["a", "b"]


def test_they_are_equal_by_value_and_static():
    a, b = by_step({0: ["x", "y"], 4: None}), by_step({4: None, 0: ("x", "y")})
    assert a == b
    assert hash(a) == hash(b)
    assert a != by_epoch({0: ["x", "y"], 4: None})
    assert fl.tree_leaves(a) == []


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({}, TypeError, r"by_epoch takes a dict of settings.*got \{\}"),
        ([1, 2], TypeError, "takes a dict of settings"),
        ({-1: 2}, ValueError, "a whole number of at least 0, got -1"),
        ({0.5: 2}, TypeError, r"got 0\.5 \(float\)"),
    ],
)
def test_wrong_settings_say_so(values, error, match):
    with pytest.raises(error, match=match):
        by_epoch(values)


def test_they_are_no_schedules_of_numbers():
    with pytest.raises(TypeError, match=r"got a by_epoch.*A schedule is such as"):
        fl.update(fl.optim.sgd(by_epoch({0: 0.1})))(fl.grad(lambda m, b: m(b).mean()))


def test_the_epoch_is_that_of_the_batch():
    """The last batch of an epoch belongs to it, the next one to the next."""
    seen = []

    def loss(model, batch):
        seen.append(len(batch))
        return model(batch).mean()

    cut = fl.accumulate(by_epoch({1: 2, 2: 4}))
    step = fl.pipe(loss, fl.grad, cut, fl.update(fl.optim.sgd(0.1)))
    data = fl.Batches(torch.randn(8, 2), 4)
    fl.fit(step, step.init(torch.nn.Linear(2, 1)), data, epochs=3)
    assert seen == [4] * 2 + [2] * 4 + [1] * 8

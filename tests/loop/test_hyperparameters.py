"""Hyperparameters as flat names."""

from __future__ import annotations

import pytest

import fnloop as fl
from fnloop.loop.hyperparameters import hyperparameters


def loss(model, batch):
    return model(batch).mean()


@pytest.mark.lightning("T38")
def test_names_are_those_of_the_reports():
    schedule = fl.schedules.cosine(3e-4, steps=100, warmup=10)
    optimizer = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(schedule))
    found = hyperparameters(
        fl.pipe(loss, fl.grad, fl.amp("fp16"), fl.update(optimizer), fl.ema(0.99))
    )
    assert found["adamw.lr.peak"] == 3e-4 and found["adamw.lr.warmup"] == 10
    assert found["clip_by_norm.max_norm"] == 1.0
    assert found["amp.precision"] == "fp16" and found["ema.decay"] == 0.99


def test_a_bare_function_has_none():
    assert hyperparameters(lambda state, batch: (state, {})) == {}


def test_labels_and_names_keep_hyperparameters_apart():
    optimizer = fl.optim.by_label(
        {"a": fl.optim.adamw(1e-3), "b": fl.optim.adamw(1e-4)}, {"x": "a", "*": "b"}
    )
    averages = [fl.ema(0.9), fl.ema(0.99, name="slow")]
    found = hyperparameters(fl.pipe(loss, fl.grad, fl.update(optimizer), *averages))
    assert (found["a.adamw.lr"], found["b.adamw.lr"]) == (1e-3, 1e-4)
    assert (found["ema.decay"], found["slow.decay"]) == (0.9, 0.99)
    assert not any("labels" in name for name in found)

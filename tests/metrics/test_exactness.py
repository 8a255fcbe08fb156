"""Metrics are exact: no dtype of the process or of the data rounds or overflows them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.merging import merge_all

BIG, ONES = 2**24, 100_000


def step_with(metrics):
    return fl.pipe(
        lambda m, x: (m(x).square().mean(), metrics(x)), fl.grad, fl.update(fl.optim.sgd(0.0))
    )


def reported(metrics, x=None):
    step = step_with(metrics)
    x = torch.ones(3, 2) if x is None else x
    return step(step.init(nn.Linear(2, 1)), x)[1]


def test_python_numbers_are_float64_and_int64():
    made = reported(
        lambda x: {"a": 0.1, "b": fl.Sum(3), "c": fl.Mean(0.1, 2), "d": fl.Last(True), "e": 7}
    )
    assert made["b"].total.dtype == torch.int64 and int(made["b"].value()) == 3
    assert made["c"].total.dtype == torch.float64 and made["c"].weight.dtype == torch.int64
    assert float(made["c"]) == 0.05
    assert float(made["a"]) == pytest.approx(0.1, abs=1e-16) and float(made["e"]) == 7
    assert made["a"].total.dtype == torch.float64
    for name in ("loss", "skipped", "sgd.lr"):
        for leaf in fl.tree_leaves(made[name]):
            assert leaf.dtype in (torch.float64, torch.int64)
    assert float(made["sgd.lr"]) == 0.0


@pytest.mark.parametrize(
    ("dtype", "n"), [(torch.int32, 2**30), (torch.uint8, 200), (torch.int16, 2**14)]
)
def test_sums_of_small_integers_do_not_overflow(dtype, n):
    part = fl.Sum(torch.tensor(n, dtype=dtype))
    parts = [part, part, part]
    assert int(fl.metrics.merge([{"n": p} for p in parts])["n"].value()) == 3 * n
    assert int(merge_all([{"n": p} for p in parts])["n"].value()) == 3 * n
    many = [{"n": fl.Sum(torch.full((2,), n, dtype=dtype))}] * 3
    assert fl.metrics.merge(many)["n"].value().tolist() == [3 * n] * 2
    assert merge_all(many)["n"].value().tolist() == [3 * n] * 2
    made = reported(lambda x: {"n": fl.Sum(torch.tensor(n, dtype=dtype))})
    assert made["n"].total.dtype == torch.int64
    step = fl.pipe(
        lambda m, x: (m(x).mean(), {"n": fl.Sum(torch.tensor(n, dtype=dtype))}),
        fl.grad,
        fl.accumulate(3),
        fl.update(fl.optim.sgd(0.1)),
    )
    assert int(step(step.init(nn.Linear(2, 1)), torch.ones(3, 2))[1]["n"].value()) == 3 * n


def parts(number=torch.float32):
    yield {"n": fl.Sum(torch.tensor(float(BIG), dtype=number))}
    for _ in range(ONES):
        yield {"n": fl.Sum(torch.tensor(1.0, dtype=number))}


def test_a_large_sum_and_many_ones_are_exact_when_merged():
    assert float(fl.metrics.merge(parts())["n"]) == BIG + ONES
    assert float(merge_all(list(parts()))["n"]) == BIG + ONES
    vectors = [{"n": fl.Sum(torch.tensor([float(BIG), 0.0]))}]
    vectors += [{"n": fl.Sum(torch.ones(2))}] * 1000
    assert merge_all(vectors)["n"].value().tolist() == [BIG + 1000, 1000]
    means = [{"n": fl.Mean(torch.tensor(float(BIG)), 1)}]
    means += [{"n": fl.Mean(torch.tensor(1.0), 1)}] * ONES
    expected = (BIG + ONES) / (1 + ONES)
    assert float(merge_all(means)["n"]) == float(fl.metrics.merge(means)["n"]) == expected


def test_a_large_sum_and_many_ones_are_exact_in_every_and_history():
    n = 2000
    data = torch.ones(n + 1, 1)
    data[0] = BIG
    step = fl.pipe(
        lambda m, x: (m(x).mean() * 0 + m.weight.sum() * 0, {"n": fl.Sum(x.sum())}),
        fl.grad,
        fl.update(fl.optim.sgd(0.0)),
    )
    seen = []

    def note(state, metrics):
        seen.append(float(metrics["n"]))
        return state, metrics

    history = fl.History()
    batches = fl.Batches(data, batch_size=1, shuffle=False)
    callbacks = [fl.every(1, note, unit="epoch"), history]
    fl.fit(step, step.init(nn.Linear(1, 1)), batches, steps=n + 1, callbacks=callbacks)
    assert seen == [BIG + n]
    assert sum(row["n"] for row in history) == BIG + n


def test_a_metric_is_formatted_and_compared_like_its_value():
    metrics = reported(lambda x: {"accuracy": 0.25})
    value = float(metrics["loss"])
    assert f"{metrics['loss']:.3f}" == f"{value:.3f}"
    assert f"{metrics['accuracy']:.0%}" == "25%"
    assert (metrics["loss"] < value + 1) is True and (metrics["loss"] > value + 1) is False
    assert metrics["accuracy"] <= 0.25 <= metrics["accuracy"]
    assert metrics["accuracy"] >= torch.tensor(0.2) and metrics["accuracy"] < fl.Sum(1)
    assert "Mean" in f"{metrics['loss']}"

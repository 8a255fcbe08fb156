"""Hypergradient descent against the published update rules, computed by hand in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import optim, schemes
from fnloop.values.tensors import Tensors

CURVATURE = np.array([0.5, 1.0, 4.0])
START = np.array([3.0, -2.0, 1.0])


def slope_at(w):
    """The gradient of ``sum(curvature * w**2 / 2 - cos(w))``."""
    return CURVATURE * w + np.sin(w)


def by_hand(kind, lr, rate, steps=10, momentum=0.9, b1=0.9, b2=0.999, eps=1e-8):
    """Algorithms 4 (SGD-HD), 5 (SGDN-HD, and so with plain momentum) and 6 (Adam-HD)."""
    w, lr_slope = START.copy(), np.zeros(3)  # the derivative of the last update by the rate
    m, v, found = np.zeros(3), np.zeros(3), []
    for t in range(1, steps + 1):
        g = slope_at(w)
        lr = lr - rate * g @ lr_slope
        if kind == "sgd":
            lr_slope = -g
        elif kind != "adam":
            m = momentum * m + g
            lr_slope = -(g + momentum * m) if kind == "nesterov" else -m
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            lr_slope = -(m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w + lr * lr_slope
        found.append((lr, w))
    return found


def ours(optimizer, steps=10):
    params = Tensors({"w": torch.from_numpy(START.copy())})
    memory, found = optimizer.init(params), []
    for step in range(steps):
        grads = params.zip_map(lambda w: torch.from_numpy(slope_at(w.numpy())))
        params, memory = optimizer.apply(grads, memory, params, step, True)
        found.append((float(memory["hypergradient"]["lr"]), params["w"].numpy()))
    return found


@pytest.mark.parametrize(
    ("kind", "optimizer", "lr", "rate"),
    [
        ("sgd", optim.sgd, 0.01, 1e-3),
        ("momentum", lambda lr: optim.sgd(lr, momentum=0.9), 0.01, 1e-4),
        ("nesterov", lambda lr: optim.sgd(lr, momentum=0.9, nesterov=True), 0.01, 1e-4),
        ("adam", optim.adam, 1e-3, 1e-3),
    ],
)
def test_ten_steps_are_those_of_the_paper(kind, optimizer, lr, rate):
    expected = by_hand(kind, lr, rate)
    found = ours(schemes.hypergradient(optimizer(lr), rate))
    assert expected[-1][0] > 1.2 * lr  # the rate has moved
    for (lr, w), (their_lr, theirs) in zip(found, expected, strict=True):
        np.testing.assert_allclose(lr, their_lr, rtol=1e-12)
        np.testing.assert_allclose(w, theirs, rtol=1e-12)


def test_the_slope_is_the_derivative_of_the_loss_by_the_rate_of_the_last_step():
    lr, rate = 0.02, 1.0

    def second(lr):
        w = START - lr * slope_at(START)
        return (CURVATURE * w**2 / 2 - np.cos(w)).sum()

    (_, _), (after, _) = ours(schemes.hypergradient(optim.sgd(lr), rate), 2)
    h = 1e-6
    slope = (second(lr + h) - second(lr - h)) / (2 * h)
    assert (lr - after) / rate == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    "inner",
    [optim.sgd(0.1, momentum=0.9), optim.adamw(0.1), optim.lion(0.01), optim.muon(0.1)],
    ids=repr,
)
def test_at_a_rate_of_zero_it_is_the_optimizer(inner):
    params = Tensors({"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))})
    a = b = params
    optimizer = schemes.hypergradient(inner, 0.0)
    own, theirs = optimizer.init(params), inner.init(params)
    for step in range(5):
        a, own = optimizer.apply(a.sub(1.0), own, a, step, True)
        b, theirs = inner.apply(b.sub(1.0), theirs, b, step, True)
    torch.testing.assert_close(dict(a), dict(b))


def loss(model, batch):
    return model(batch).square().mean()


def net():
    return nn.Linear(4, 3).double()


def batch():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rates(step, steps=8, scaled=None):
    state, found = step.init(net, seed=0), []
    for t in range(steps):
        if t == scaled:
            state = fl.scale(state, "sgd.lr", 0.5)
        state, metrics = step(state, batch())
        found.append(float(metrics["hypergradient.lr"]))
    return np.array(found)


def test_a_rate_that_is_too_small_grows_and_one_that_is_too_large_falls():
    small, large = (
        rates(fl.pipe(loss, fl.grad, fl.update(schemes.hypergradient(optim.sgd(lr), 0.01))), 40)
        for lr in (1e-3, 1.2)
    )
    assert (np.diff(small[:10]) > 0).all() and small[-1] > 10 * small[0]
    assert large.min() < 1.0 < large[0]


def test_schedules_and_scale_multiply_what_has_been_learned():
    def step(lr, rate):
        return fl.pipe(loss, fl.grad, fl.update(schemes.hypergradient(optim.sgd(lr), rate)))

    warm = fl.schedules.linear(0.0, 0.1, steps=4)
    np.testing.assert_allclose(rates(step(warm, 0.0)), [warm(t) for t in range(8)], rtol=1e-6)
    learned = rates(step(warm, 0.01))
    assert learned[0] == 0 and (learned[2:] > [warm(t) for t in range(2, 8)]).all()
    assert rates(step(0.1, 0.0), scaled=4)[4:] == pytest.approx(0.05)
    plain, halved = rates(step(0.1, 1e-3)), rates(step(0.1, 1e-3), scaled=4)
    assert halved[4] == pytest.approx(plain[4] / 2, rel=1e-2)


def test_what_is_frozen_by_scale_stays_and_comes_back():
    step = fl.pipe(loss, fl.grad, fl.update(schemes.hypergradient(optim.sgd(0.1), 0.01)))
    state, _ = step(step.init(net, seed=0), batch())
    still, metrics = step(fl.scale(state, "sgd.lr", 0.0), batch())
    assert fl.tree_equal(still.params, state.params) and float(metrics["hypergradient.lr"]) == 0
    thawed, metrics = step(fl.scale(still, "sgd.lr", to=1.0), batch())
    assert thawed.params.all_finite() and float(metrics["hypergradient.lr"]) > 0


def test_frozen_parameters_do_not_count_in_the_slope():
    both = fl.optim.by_label(
        {"a": optim.sgd(0.1), "b": optim.freeze()}, {"weight": "a", "bias": "b"}
    )
    only = fl.pipe(
        loss, fl.grad(only="weight"), fl.update(schemes.hypergradient(optim.sgd(0.1), 0.01))
    )
    step = fl.pipe(loss, fl.grad, fl.update(schemes.hypergradient(both, 0.01)))
    np.testing.assert_allclose(rates(step), rates(only))


def test_what_it_cannot_be_around_is_refused():
    with pytest.raises(TypeError, match=r"takes an optimizer that makes updates.*got clip_by_norm"):
        schemes.hypergradient(optim.clip_by_norm(1.0), 0.1)
    with pytest.raises(TypeError, match="lbfgs"):
        schemes.hypergradient(optim.lbfgs(), 0.1)
    with pytest.raises(ValueError, match=r"has a.sgd.lr, b.adam.lr. For a rate for each part"):
        schemes.hypergradient(
            optim.by_label({"a": optim.sgd(0.1), "b": optim.adam(0.1)}, {"*": "a"}), 0.1
        )

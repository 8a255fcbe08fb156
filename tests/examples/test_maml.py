"""MAML on sine curves: outer gradients against differences, and what is learned."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl


@pytest.fixture
def maml(example):
    return example("maml")


def test_the_outer_gradient_against_differences(maml, monkeypatch):
    step = maml.inner
    start = step.init(lambda: maml.network().double(), seed=0)
    monkeypatch.setattr(maml, "start", start)
    learn, evaluate = maml.sines(1, torch.Generator().manual_seed(0))
    task = [tuple(t[0].double() for t in points) for points in (learn, evaluate)]
    way = fl.tree_map(
        lambda t: torch.cos(torch.arange(t.numel()).double()).view_as(t), start.params
    )

    def along(gradient):
        return float(sum((gradient[name] * way[name]).sum() for name in way))

    def at(t):
        return float(maml.after(start.params.add(way.scale(t)), *task))

    h = 1e-6
    second = torch.func.grad(maml.after)(start.params, *task)
    assert along(second) == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-5)

    # First order: the gradient at the adapted parameters (Finn et al., 2017, 5.2).
    adapted = fl.unroll(step, start, [task[0]] * maml.INNER)
    by_autograd = fl.tree_map(lambda t: t.requires_grad_(), adapted.params)
    value = adapted.replace(params=by_autograd).apply(lambda model: maml.loss(model, task[1]))
    expected = torch.autograd.grad(value, list(by_autograd.values()))
    first = torch.func.grad(maml.first_order)(start.params, *task)
    torch.testing.assert_close([first[name] for name in by_autograd], list(expected))
    assert abs(along(first) - along(second)) > 0.01 * abs(along(second))


def test_a_few_steps_learn_a_sine_from_what_was_learned(maml):
    before = maml.error(maml.start.params)
    assert maml.error(maml.train(iterations=150)) < 0.7 * before

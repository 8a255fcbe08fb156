"""PCGrad against algorithm 1 of the paper, line by line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.schemes.surgery import projected


def algorithm_1(gradients, order):
    """Yu et al., 2020: the gradients after all projections."""
    found = [g.clone() for g in gradients]
    for i, g in enumerate(found):
        for j in order[i].tolist():
            if j != i and g @ gradients[j] < 0:
                g -= (g @ gradients[j]) / gradients[j].square().sum() * gradients[j]
    return torch.stack(found)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_projections_are_those_of_the_paper(n):
    generator = torch.Generator().manual_seed(n)
    for _ in range(20):
        g = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        order = torch.rand(n, n, generator=generator).argsort(1)
        torch.testing.assert_close(projected(g @ g.T, order) @ g, algorithm_1(g, order))


def first(model, batch):
    return model(batch)[:, 0].square().mean()


def second(model, batch):
    return (model(batch)[:, 1] + 3 * model(batch)[:, 0]).tanh().mean()


def net():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64)


def of(loss, state):
    grads = fl.grad(loss)(state, batch())[1].mean
    return torch.cat([g.flatten() for g in grads.values()])


def test_a_step_is_that_of_a_loop():
    lr, conflicts = 0.2, 0
    step = fl.pipe(fl.schemes.pcgrad(first=first, second=second), fl.update(fl.optim.sgd(lr)))
    state = step.init(net())
    for _ in range(12):
        a, b = of(first, state), of(second, state)
        conflicts += int(a @ b < 0)
        expected = algorithm_1(torch.stack([a, b]), torch.tensor([[1], [0]])).sum(0)
        new, _ = step(state, batch())
        moves = [state.params[name] - new.params[name] for name in state.params]
        torch.testing.assert_close(torch.cat([m.flatten() for m in moves]), lr * expected)
        state = new
    assert 0 < conflicts < 12


def test_neither_of_two_losses_rises_by_a_small_step():
    """Two projected gradients never point uphill for either loss."""
    step = fl.pipe(fl.schemes.pcgrad(a=first, b=second), fl.update(fl.optim.sgd(1e-4)))
    state = step.init(net())
    for _ in range(5):
        new, _ = step(state, batch())
        for loss in (first, second):
            gradients = fl.grad(loss)
            before = fl.base.loss_at(gradients, state, batch())
            assert fl.base.loss_at(gradients, new, batch()) <= before
        state = new


def test_three_are_projected_in_an_order_that_changes_with_the_step():
    ways = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [-1.0, -2.0]], dtype=torch.float64)

    def toward(i):
        return lambda model, batch: (model.weight[0] * ways[i]).sum()

    stage = fl.schemes.pcgrad(a=toward(0), b=toward(1), c=toward(2))
    state = stage.init(nn.Linear(2, 1, bias=False).double())
    orders = [torch.tensor(o) for o in ([1, 2], [2, 1], [0, 2], [2, 0], [0, 1], [1, 0])]
    possible = {
        tuple(round(v, 6) for v in algorithm_1(ways, [a, b, c]).sum(0).tolist())
        for a in orders[:2]
        for b in orders[2:4]
        for c in orders[4:]
    }
    found = set()
    for calls in range(40):
        now = state.replace(calls=torch.tensor(calls))
        _, grads = stage(now, torch.ones(1))
        found.add(tuple(round(v, 6) for v in grads.mean["weight"][0].tolist()))
    assert found <= possible and len(found) == len(possible) > 2

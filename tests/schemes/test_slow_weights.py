"""Lookahead against its closed form and a loop in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


def loss(model, batch):
    return model(batch).square().mean()


def batch(n=6):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def test_on_a_quadratic_it_shrinks_by_the_closed_form():
    """Section 3: each round multiplies by ``1 - alpha + alpha * (1 - lr * curvature)**k``."""
    curvature = torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64)

    def bowl(model, batch):
        return (curvature * model.weight.square()).sum() / 2

    k, alpha, lr = 3, 0.8, 0.2
    step = fl.pipe(bowl, fl.grad, fl.update(fl.optim.sgd(lr)), fl.schemes.lookahead(k, alpha=alpha))
    state = step.init(nn.Linear(3, 1, bias=False, dtype=torch.float64))
    start = state.params["weight"]
    for _ in range(4 * k):
        state, _ = step(state, torch.ones(1))
    expected = start * (1 - alpha + alpha * (1 - lr * curvature) ** k) ** 4
    torch.testing.assert_close(state.params["weight"], expected)
    assert torch.equal(state.params["weight"], state["lookahead"]["weight"])


def test_the_optimizer_keeps_its_memory_as_in_a_loop_in_torch():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(1e-2)), fl.schemes.lookahead(2))
    state, model = step.init(net()), net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    slow = [p.detach().clone() for p in model.parameters()]
    for i in range(5):
        state, _ = step(state, batch())
        optimizer.zero_grad()
        loss(model, batch()).backward()
        optimizer.step()
        if (i + 1) % 2 == 0:
            with torch.no_grad():
                for p, s in zip(model.parameters(), slow, strict=True):
                    s.add_(p - s, alpha=0.5)
                    p.copy_(s)
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-4, atol=1e-6)


def test_a_skipped_step_does_not_count():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.schemes.lookahead(2))
    clean = mixed = step.init(net())
    for _ in range(4):
        clean, _ = step(clean, batch())
        mixed, _ = step(step(mixed, batch() * torch.nan)[0], batch())
    assert fl.tree_equal(clean.params, mixed.params)
    assert fl.tree_equal(clean["lookahead"], mixed["lookahead"])


def test_slow_weights_of_half_precision_are_float32_and_share_no_memory():
    step = fl.pipe(
        loss, fl.grad, fl.amp("bf16-true"), fl.update(fl.optim.sgd(0.1)), fl.schemes.lookahead(1)
    )
    state, _ = step(step.init(net()), batch())
    assert state.params["0.weight"].dtype == torch.bfloat16
    assert state["lookahead"]["0.weight"].dtype == torch.float32
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.schemes.lookahead(1))
    state, _ = step(step.init(net()), batch())
    assert state.params["0.weight"].data_ptr() != state["lookahead"]["0.weight"].data_ptr()


def test_errors():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(ValueError, match=r"lookahead\(k="):
        fl.schemes.lookahead(0)(step)
    with pytest.raises(ValueError, match=r"lookahead\(alpha=.* from 0 to 1.*, got 2"):
        fl.schemes.lookahead(alpha=2)(step)

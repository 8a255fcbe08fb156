"""Gradient centralization against its properties and the authors' two lines."""

from __future__ import annotations

import torch
from torch import nn

import fnloop as fl


def loss(model, batch):
    return model(batch).square().mean()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def batch():
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_step_is_that_of_the_authors_code():
    """https://github.com/Yonghongwei/Gradient-Centralization: ``centralized_gradient``."""
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(fl.optim.chain(fl.schemes.centralize(), fl.optim.sgd(0.1, momentum=0.9))),
    )
    state, model = step.init(net()), net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        state, _ = step(state, batch())
        optimizer.zero_grad()
        loss(model, batch()).backward()
        for p in model.parameters():
            if len(list(p.grad.size())) > 1:
                p.grad.add_(-p.grad.mean(dim=tuple(range(1, len(p.grad.size()))), keepdim=True))
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach())


def test_the_mean_of_each_outputs_weights_stays():
    """Section 4: without momentum or decay, weights stay in a hyperplane."""
    step = fl.pipe(
        loss, fl.grad, fl.update(fl.optim.chain(fl.schemes.centralize(), fl.optim.sgd(0.5)))
    )
    state = before = step.init(net())
    for _ in range(5):
        state, _ = step(state, batch())
    for name in ("0.weight", "3.weight"):
        mean, was = (s.params[name].flatten(1).mean(1) for s in (state, before))
        torch.testing.assert_close(mean, was)
        assert not torch.equal(state.params[name], before.params[name])
    assert not torch.allclose(state.params["3.bias"], before.params["3.bias"])

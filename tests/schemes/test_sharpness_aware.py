"""SAM and ASAM against loops in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def arrays(n=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator)
    return x, x[:, :3].argmax(1)


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def plain(dropout=0.0):
    model = net()
    model[3].p = dropout
    return model


@pytest.mark.parametrize("adaptive", [False, True])
def test_three_steps_are_those_of_a_loop_in_torch(adaptive):
    rho, eta = 0.3, 0.01
    step = fl.pipe(
        loss, fl.grad, fl.schemes.sam(rho, adaptive, eta), fl.update(fl.optim.sgd(0.1, 0.9))
    )
    state = step.init(plain())
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        state, metrics = step(state, arrays())
        value = loss(model, arrays())
        grads = torch.autograd.grad(value, list(model.parameters()))
        statistics = {n: b.clone() for n, b in model.named_buffers()}
        sizes = [
            p.detach().abs() + eta if adaptive else torch.ones_like(p) for p in model.parameters()
        ]
        norm = torch.cat([(t * g).flatten() for t, g in zip(sizes, grads, strict=True)]).norm()
        moves = [rho * t * t * g / norm for t, g in zip(sizes, grads, strict=True)]
        with torch.no_grad():
            for p, e in zip(model.parameters(), moves, strict=True):
                p.add_(e)
        optimizer.zero_grad()
        loss(model, arrays()).backward()
        with torch.no_grad():
            for p, e in zip(model.parameters(), moves, strict=True):
                p.sub_(e)
        optimizer.step()
        model.load_state_dict({**model.state_dict(), **statistics})
        assert float(metrics["loss"]) == pytest.approx(float(value.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-4, atol=1e-5)
    for name, b in model.named_buffers():
        torch.testing.assert_close(state.buffers[name], b)


def test_to_first_order_the_loss_rises_by_rho_times_the_norm():
    """Equation 1: the maximum over the ball is the loss plus ``rho * ||g||``."""
    gradients = fl.grad(loss)
    state, rho = gradients.init(plain().double()), 1e-4
    x = (arrays()[0].double(), arrays()[1])
    g = gradients(state, x)[1].mean
    there = fl.schemes.sam(rho)(gradients).uphill(state, state.params, g)
    rise = fl.base.loss_at(gradients, state, x, there) - fl.base.loss_at(gradients, state, x)
    assert float(rise) == pytest.approx(rho * float(g.norm()), rel=1e-2)


def test_masks_are_the_same_at_both_places():
    seen = []

    def network():
        return nn.Sequential(nn.Linear(4, 3, bias=False), nn.Dropout(0.5))

    def masked(model, batch):
        scores = model(batch[0])
        seen.append(scores.detach() == 0)
        return F.cross_entropy(scores, batch[1])

    step = fl.pipe(masked, fl.grad, fl.schemes.sam(0.1), fl.update(fl.optim.sgd(0.1)))
    state, _ = step(step.init(network, seed=0), arrays())
    step(state, arrays())
    first, again, second, _ = seen
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_adaptive_sharpness_does_not_change_when_layers_are_rescaled():
    def network(a):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
        model = model.double()
        with torch.no_grad():
            model[0].weight.mul_(a)
            model[2].weight.div_(a)
        return model

    def uphill(a, **options):
        gradients = fl.grad(loss)
        state, x = gradients.init(network(a)), (arrays()[0].double(), arrays()[1])
        stage, g = fl.schemes.sam(0.5, **options)(gradients), gradients(state, x)[1].mean
        there = stage.uphill(state, state.params, g)
        return float(fl.base.loss_at(gradients, state, x, there))

    same = [uphill(a, adaptive=True, eta=0.0) for a in (1.0, 5.0)]
    assert same[0] == pytest.approx(same[1], rel=1e-9)
    assert uphill(1.0) != pytest.approx(uphill(5.0), rel=1e-2)


def test_a_loss_scale_follows_an_overflow_that_is_uphill_only():
    def steep(model, x):  # its gradient is 32000 at 20 and 87808 at 28, which fp16 does not have
        return model(x).float().pow(4).mean()

    step = fl.pipe(
        steep,
        fl.grad,
        fl.amp("fp16", init_scale=1.0, min_scale=0.01),
        fl.schemes.sam(8.0),
        fl.update(fl.optim.sgd(0.1)),
    )
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 20.0)
    state = step.init(model)
    at_once = fl.pipe(
        steep, fl.grad, fl.amp("fp16", init_scale=1.0, min_scale=0.01), fl.update(fl.optim.sgd(0.1))
    )
    assert at_once(state, torch.ones(2, 1))[1]["skipped"].value() == 0
    new, metrics = step(state, torch.ones(2, 1))
    assert metrics["skipped"].value() == 1
    assert new["amp"]["scale"] < state["amp"]["scale"]


def test_it_costs_nothing_more_where_the_loss_alone_is_asked_for():
    calls = []

    def counted(model, batch):
        calls.append(1)
        return loss(model, batch)

    gradients = fl.pipe(counted, fl.grad, fl.schemes.sam(0.1))
    fl.base.loss_at(gradients, gradients.init(plain()), arrays())
    assert len(calls) == 1


def test_errors():
    with pytest.raises(ValueError, match=r"sam\(rho=.* at least 0.*, got -1"):
        fl.pipe(loss, fl.grad, fl.schemes.sam(-1))
    with pytest.raises(TypeError, match="sam"):
        fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.schemes.sam())

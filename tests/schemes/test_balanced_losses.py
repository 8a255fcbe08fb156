"""GradNorm against its algorithm in plain torch, which differentiates the loss of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.schemes.balanced_losses import balanced

gradnorm = fl.schemes.gradnorm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.a, self.b, self.c = (nn.Linear(6, 1) for _ in range(3))

    def forward(self, x):
        h = self.trunk(x)
        return self.a(h), self.b(h), self.c(h)


SIZES = (1.0, 5.0, 20.0)


def task(i):
    """One of three regressions that differ in the size of their targets, as in the paper."""

    def loss(model, batch):
        x, y = batch
        return (model(x)[i] - SIZES[i] * y[:, i : i + 1]).square().mean()

    return loss


LOSSES = {name: task(i) for i, name in enumerate("abc")}


def net():
    torch.manual_seed(0)
    return Net().double()


def batch(n=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, torch.tanh(x @ torch.randn(4, 3, generator=generator, dtype=torch.float64))


def pipeline(alpha=1.5, lr=1e-3, **options):
    stage = gradnorm(alpha=alpha, lr=lr, **options, **LOSSES)
    return fl.pipe(stage, fl.update(fl.optim.sgd(1e-3)))


def by_the_paper(alpha, lr, steps, over):
    """Algorithm 1: the weights' loss is differentiated by autograd through the norms."""
    model, weights = net(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    shared, first = over(model), None
    for i in range(steps):
        losses = torch.stack([loss(model, batch(seed=i)) for loss in LOSSES.values()])
        first = losses.detach() if first is None else first
        sizes = torch.stack(
            [
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(w * each, shared, create_graph=True)]
                ).norm()
                for w, each in zip(weights, losses, strict=True)
            ]
        )
        ratio = losses.detach() / first
        targets = (sizes.mean() * (ratio / ratio.mean()) ** alpha).detach()
        (change,) = torch.autograd.grad((sizes - targets).abs().sum(), weights, retain_graph=True)
        grads = torch.autograd.grad((weights * losses).sum(), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 1e-3 * g
            moved = weights - lr * change
        weights = (3 * moved / moved.sum()).requires_grad_()
    return weights.detach(), model


@pytest.mark.parametrize(
    ("options", "over"),
    [
        ({}, lambda model: list(model.trunk.parameters())),
        ({"over": "trunk.2.weight"}, lambda model: [model.trunk[2].weight]),
    ],
    ids=["all that is shared", "the last layer"],
)
def test_weights_and_parameters_are_those_of_the_algorithm(options, over):
    steps = 30
    step = pipeline(**options)
    state = step.init(net())
    for i in range(steps):
        state, _ = step(state, batch(seed=i))
    weights, model = by_the_paper(1.5, 1e-3, steps, over)
    found = torch.stack(list(state["gradnorm"]["weight"].values()))
    torch.testing.assert_close(found, weights)
    assert (weights - 1).abs().max() > 0.05
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach())


def test_without_alpha_it_makes_the_norms_equal():
    """The closed form: with constant norms n_i, weights proportional to 1 / n_i."""
    norms, weights = torch.tensor([1.0, 2.0, 4.0]).double(), torch.ones(3).double()
    for _ in range(3000):
        weights = balanced(weights, norms, torch.ones(3).double(), 0.0, 5e-4)
    expected = 3 / norms / (1 / norms).sum()
    torch.testing.assert_close(weights, expected, rtol=0.01, atol=0)


def test_what_is_reported_and_what_a_skip_leaves():
    step = pipeline()
    state = step.init(net())
    after, metrics = step(state, batch())
    again, metrics = step(after, batch(seed=2))
    weights = after["gradnorm"]["weight"]
    expected = sum(float(weights[n]) * float(metrics[f"{n}/loss"]) for n in "abc")
    assert float(metrics["loss"]) == pytest.approx(expected)
    assert (
        float(metrics["gradnorm.a"])
        == float(weights["a"])
        != float(again["gradnorm"]["weight"]["a"])
    )
    x, y = batch()
    skipped, _ = step(after, (x * torch.nan, y))
    assert fl.tree_equal(skipped["gradnorm"], after["gradnorm"])
    there = after.params.scale(0.5)
    found = fl.base.loss_at(step.inner, after, batch(), there)
    moved = step(after.replace(params=there), batch())[1]["loss"].value()
    torch.testing.assert_close(found, moved)


def test_micro_batches_go_into_the_parts():
    parts = {name: fl.pipe(loss, fl.grad, fl.accumulate(3)) for name, loss in LOSSES.items()}
    inside = fl.pipe(gradnorm(lr=1e-3, **parts), fl.update(fl.optim.sgd(1e-3)))
    stage = gradnorm(lr=1e-3, **LOSSES)
    behind = fl.pipe(stage, fl.accumulate(3), fl.update(fl.optim.sgd(1e-3)))
    (a, _), *others = (step(step.init(net()), batch()) for step in (pipeline(), inside, behind))
    for b, _ in others:
        torch.testing.assert_close(a["gradnorm"]["weight"], b["gradnorm"]["weight"])


def test_errors():
    with pytest.raises(TypeError, match="gradnorm takes losses by name, and got none"):
        gradnorm(alpha=1.0)
    with pytest.raises(ValueError, match=r"gradnorm\(over=\): 'trunk.9' fits no parameter"):
        step = pipeline(over="trunk.9")
        step(step.init(net()), batch())
    apart = {name: fl.grad(loss, only=name) for name, loss in LOSSES.items()}
    step = fl.pipe(gradnorm(**apart), fl.update(fl.optim.sgd(1e-3)))
    with pytest.raises(ValueError, match="and there are none: a, b, c reach others each"):
        step(step.init(net()), batch())
    with pytest.raises(ValueError, match="keeps memory"):
        fl.shard(pipeline(), fl.mesh())

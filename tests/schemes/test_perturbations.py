"""Evolution strategies against gradients of smoothed losses that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

evolution = fl.schemes.evolution


def at(values):
    stage = fl.grad(lambda model, batch: model.weight.sum())
    state = stage.init(nn.Linear(len(values), 1, bias=False))
    return state.replace(params={"weight": torch.tensor([values])})


def test_its_mean_is_the_gradient_of_the_smoothed_loss():
    """Of ``sum(w**4) / 4``: smoothed it is ``sum(w**4 / 4 + 3/2 std**2 w**2) + ...``."""
    std, state = 0.8, at([0.5, -1.0, 2.0])
    w = state.params["weight"]
    stage = evolution(std, draws=60_000)(fl.grad(lambda model, x: model.weight.pow(4).sum() / 4))
    _, grads = stage(state, torch.ones(1))
    torch.testing.assert_close(grads.mean["weight"], w**3 + 3 * std**2 * w, rtol=0.05, atol=0.25)
    assert ((w**3 - grads.mean["weight"]).abs() > 0.5).all()  # which is not its gradient
    assert float(grads.metrics["loss"]) == pytest.approx(float(w.pow(4).sum() / 4))


def test_on_a_quadratic_loss_it_is_the_slopes_times_the_directions():
    """Antithetic draws cancel what is even: for any std, ``mean(v v') @ gradient``."""
    curvature = torch.tensor([[1.0, 4.0, 9.0]])
    state, found = at([1.0, -1.0, 0.5]), []
    for std in (0.01, 2.0):
        stage = evolution(std, draws=500)(
            fl.grad(lambda model, x: (curvature * model.weight.square()).sum() / 2)
        )
        found.append(stage(state, torch.ones(1))[1].mean["weight"])
    gradient = curvature * state.params["weight"]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    # The covariance of the estimate is (|g|**2 + g g') / draws.
    spread = ((gradient.square().sum() + gradient.square()) / 500).sqrt()
    assert ((found[0] - gradient).abs() < 4 * spread).all()
    assert ((found[0] - gradient).abs() > 1e-3 * spread).all()


def test_draws_have_masks_of_their_own_the_same_at_both_places():
    """Of a loss that is a mask the slope is zero if both places have one mask.

    Where the mask is the slope, its mean over many draws is 1, which that of one mask never is.
    """

    def alone(model, x):
        return F.dropout(x, 0.5).sum() + 0 * model.weight.sum()

    def slope(model, x):
        return (model.weight * F.dropout(x, 0.5)).sum()

    state, x = at([1.0]), torch.ones(3)
    assert float(evolution(0.1, 64)(fl.grad(alone))(state, x)[1].mean["weight"]) == 0
    stage = evolution(0.1, 4000)(fl.grad(slope))
    (_, grads), (_, again) = stage(state, x), stage(state, x)
    assert float(grads.mean["weight"]) == pytest.approx(3.0, rel=0.1)
    assert fl.tree_equal(grads, again)


def test_statistics_and_metrics_are_those_of_the_gradient():
    def loss(model, batch):
        x, y = batch
        logits = model(x)
        return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}

    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    batch = x, x[:, :3].argmax(1)
    exact = fl.grad(loss)
    stage = evolution(0.01, 8)(exact)
    state = stage.init(
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)), seed=0
    )
    (a, expected), (b, grads) = exact(state, batch), stage(state, batch)
    assert fl.tree_equal(a.buffers, b.buffers)
    assert fl.tree_equal(expected.metrics, grads.metrics)
    assert grads.mean.keys() == expected.mean.keys()


def test_it_trains_what_has_no_derivative():
    def wrong(model, batch):
        x, y = batch
        return (model(x).argmax(1) != y).double().mean()

    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    data = fl.Batches((x, (x.sum(1) > 0).long()), 50)
    step = fl.pipe(wrong, fl.grad, evolution(0.3, 20), fl.update(fl.optim.adam(0.05)))
    state = step.init(lambda: nn.Linear(2, 2), seed=0)
    before = fl.evaluate(wrong, state, data)["loss"]
    state, _ = fl.fit(step, state, data, epochs=15)
    assert fl.evaluate(wrong, state, data)["loss"] < min(0.06, before / 2)


def test_errors():
    exact = fl.grad(lambda model, x: model(x).mean())
    with pytest.raises(ValueError, match=r"evolution\(std=.* above 0.*, got 0\.0"):
        evolution(0.0)(exact)
    with pytest.raises(ValueError, match=r"evolution\(draws="):
        evolution(0.1, 0)(exact)
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, evolution(), fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(ValueError, match="evolution was given a stage that is sharded"):
        fl.shard(step, fl.mesh())

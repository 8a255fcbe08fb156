"""The noise scale against its closed form, and against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import testing

noise_scale = fl.schemes.noise_scale


def linear(model, x):
    """The gradient of an example is the example."""
    return (x * model.weight).sum(1).mean()


def flat():
    return nn.Linear(3, 1, bias=False)


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3))


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


def arrays(n=16):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize(("k", "rtol"), [(None, 0.05), (4, 0.1)])
def test_it_is_that_of_the_distribution_of_the_gradients(k, rtol):
    mean, deviations = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([1.0, 2.0, 0.5])
    expected = float(deviations.square().sum() / mean.square().sum())  # 37.5
    step = fl.pipe(linear, fl.grad, noise_scale(k), fl.update(fl.optim.sgd(0.0)))
    x = mean + deviations * torch.randn(40_000, 3, generator=torch.Generator().manual_seed(2))
    seen = []
    note = fl.stage(
        lambda state, m: (seen.append(float(m["noise_scale"])), (state, m))[1], "callback"
    )
    fl.fit(step, step.init(flat), fl.Batches(x, 80), epochs=1, callbacks=[fl.every(500, note)])
    assert seen == [pytest.approx(expected, rel=rtol)]


@pytest.mark.parametrize("k", [None, 2, 5])
def test_the_estimates_are_those_of_numpy_for_unequal_parts_too(k):
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 1
    stage = fl.pipe(linear, fl.grad, noise_scale(k))
    _, grads = stage(stage.init(lambda: flat().double()), x)
    bounds = np.arange(12) if k is None else [11 * i // k for i in range(k + 1)]
    parts = [x.numpy()[a:b] for a, b in itertools.pairwise(bounds)]
    whole = x.numpy().mean(0)
    spread = sum(len(part) * np.square(part.mean(0) - whole).sum() for part in parts)
    trace = spread / (len(parts) - 1)
    found = grads.metrics["noise_scale"]
    assert float(found.trace) == pytest.approx(trace)
    assert float(found.square) == pytest.approx(whole @ whole - trace / 11)
    np.testing.assert_allclose(grads.mean["weight"][0], whole)


@pytest.mark.parametrize("weights", [[1, 2, 0, 1, 3, 0], [0, 0, 5, 0, 0, 0]])
def test_examples_of_weight_zero_do_not_count(weights):
    def weighed(model, batch):
        x, w = batch
        return fl.Mean((w * (x * model.weight).sum(1)).sum(), w.sum())

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)) + 1
    w = torch.tensor(weights).float()
    kept = w > 0
    found = []
    for k, batch in [(None, (x, w)), (6, (x, w)), (None, (x[kept], w[kept]))]:
        stage = fl.pipe(weighed, fl.grad, noise_scale(k))
        found.append(stage(stage.init(flat, seed=0), batch)[1])
    for grads in found[:2]:
        torch.testing.assert_close(grads.mean["weight"], found[2].mean["weight"])
        for a, b in zip(*(fl.tree_leaves(g.metrics) for g in (grads, found[2])), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert float(found[0].weight) == sum(weights)


@pytest.mark.parametrize("k", [2, 5, 40])
def test_in_parts_it_is_accumulate(k):
    one, other = (fl.pipe(loss, fl.grad, part) for part in (noise_scale(k), fl.accumulate(k)))
    state = one.init(net, seed=0)
    (_, a), (_, b) = (stage(state, arrays()) for stage in (one, other))
    assert fl.tree_equal(a.mean, b.mean) and fl.tree_equal(a.metrics["loss"], b.metrics["loss"])
    assert fl.base.loss_at(one, state, arrays()) == fl.base.loss_at(other, state, arrays())


def test_each_by_itself_has_the_gradient_of_the_batch():
    stage = fl.pipe(loss, fl.grad, noise_scale())
    state = stage.init(net, seed=0)
    _, expected = fl.grad(loss)(state, arrays())
    _, grads = stage(state, arrays())
    for name, g in expected.mean.items():
        torch.testing.assert_close(grads.mean[name], g)
    for name in ("loss", "accuracy"):
        assert float(grads.metrics[name]) == pytest.approx(float(expected.metrics[name]))
    assert fl.base.loss_at(stage, state, arrays()) == fl.base.loss_at(
        fl.grad(loss), state, arrays()
    )


def test_laws_of_single_examples():
    step = fl.pipe(loss, fl.grad, noise_scale(), fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))
    state, (x, y) = step.init(net, seed=0), arrays()
    testing.check_pure(step, state, (x, y))
    testing.check_repeatable(step, state, (x, y))
    testing.check_stable(step, state, (x, y))
    testing.check_skips(step, step(state, (x, y))[0], (x * torch.nan, y))
    testing.check_resumes(step, state, fl.Batches(arrays(20), 8, seed=3), steps=5, at=(2, 4))
    testing.check_compiles(step, state, [(x, y), (x * torch.nan, y)])
    testing.check_vmaps(step, [step.init(net, seed=i) for i in range(3)], (x, y))


def test_errors():
    with pytest.raises(ValueError, match=r"noise_scale\(k="):
        noise_scale(1)(fl.grad(loss))
    with pytest.raises(ValueError, match="noise_scale was given a stage that is sharded"):
        fl.shard(fl.pipe(loss, fl.grad, noise_scale(), fl.update(fl.optim.sgd(0.1))), fl.mesh())
    stage = fl.pipe(loss, fl.grad, noise_scale())
    normed = stage.init(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="noise_scale takes the gradient of each example alone"):
        stage(normed, arrays())

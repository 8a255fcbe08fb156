"""DP-SGD against a loop over examples in plain torch; and the laws, without BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import testing

dp_sgd = fl.schemes.dp_sgd


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3))


def arrays(n=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


def state_of(stage=None, model=net):
    return (stage or fl.grad(loss)).init(model, seed=0)


def test_the_total_is_that_of_a_loop_over_examples():
    clip = 1.2
    model = net().eval()
    x, y = arrays(20)
    total, clipped = [torch.zeros_like(p) for p in model.parameters()], 0
    for i in range(20):
        value = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(value, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        clipped += int(norm > clip)
        for sum_, g in zip(total, grads, strict=True):
            sum_ += g * min(1.0, clip / float(norm))
    model[2].p = 0.0
    stage = dp_sgd(clip, noise=0.0)(fl.grad(loss))
    _, grads = stage(stage.init(model), (x, y))
    assert 0 < clipped < 20
    for sum_, g in zip(total, grads.mean.values(), strict=True):
        torch.testing.assert_close(g, sum_ / 20)


def test_with_dropout_too_it_is_the_gradient_of_the_batch_where_nothing_is_clipped():
    state = state_of()
    _, expected = fl.grad(loss)(state, arrays())
    _, grads = dp_sgd(1e6, noise=0.0)(fl.grad(loss))(state, arrays())
    for name, g in expected.mean.items():
        torch.testing.assert_close(grads.mean[name], g)
    for name in ("loss", "accuracy"):
        assert float(grads.metrics[name]) == pytest.approx(float(expected.metrics[name]))


def test_with_dropout_and_clipping_it_is_a_loop_with_the_masks_of_the_examples():
    clip, n = 0.5, 20
    stage = dp_sgd(clip, noise=0.0)(fl.grad(loss))
    state, (x, y) = state_of(stage), arrays(20)
    with fl.randomness(state, "loss"):  # as the model draws them: one for each example
        masks = F.dropout(torch.ones(n, 5), 0.4)
    assert len({tuple(mask.tolist()) for mask in masks}) > 10
    params = {name: p.clone().requires_grad_() for name, p in state.params.items()}
    total, clipped = [torch.zeros_like(p) for p in params.values()], 0
    for i in range(n):
        hidden = (x[i] @ params["0.weight"].T + params["0.bias"]).tanh() * masks[i]
        value = F.cross_entropy(hidden @ params["3.weight"].T + params["3.bias"], y[i])
        grads = torch.autograd.grad(value, list(params.values()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        clipped += int(norm > clip)
        for sum_, g in zip(total, grads, strict=True):
            sum_ += g * min(1.0, clip / float(norm))
    assert clipped > 0
    _, found = stage(state, (x, y))
    for sum_, g in zip(total, found.mean.values(), strict=True):
        torch.testing.assert_close(g, sum_ / n)


def test_no_example_counts_for_more_than_the_clip():
    x, y = arrays()
    state = state_of()
    stage = dp_sgd(0.1, noise=0.0)(fl.grad(loss))
    other = x.clone()
    other[3] *= 1000
    a, b = stage(state, (x, y))[1].mean, stage(state, (other, y))[1].mean
    assert float(a.sub(b).norm()) <= 2 * 0.1 / 7 + 1e-6
    assert float(a.sub(b).norm()) > 0


def test_noise_has_the_deviation_of_the_paper():
    clip, noise, n = 0.5, 2.0, 7
    state = state_of(model=lambda: nn.Linear(6, 3000))
    x, y = arrays(n)
    quiet, noisy = (dp_sgd(clip, s)(fl.grad(loss))(state, (x, y))[1].mean for s in (0.0, noise))
    drawn = noisy["weight"] - quiet["weight"]
    assert float(drawn.std()) == pytest.approx(noise * clip / n, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.005)


def test_examples_of_weight_zero_do_not_count():
    def weighed(model, batch):
        x, y, w = batch
        return fl.Mean((w * F.cross_entropy(model(x), y, reduction="none")).sum(), w.sum())

    x, y = arrays()
    w = torch.tensor([1.0, 1, 0, 1, 0, 1, 1])
    model = net().eval()
    model[2].p = 0.0
    stage = dp_sgd(0.5, noise=0.0)(fl.grad(weighed))
    state = stage.init(model)
    _, some = stage(state, (x, y, w))
    kept = w > 0
    _, alone = stage(state, (x[kept], y[kept], w[kept]))
    assert int(some.weight) == int(alone.weight) == 5
    for name, g in alone.mean.items():
        torch.testing.assert_close(some.mean[name], g)


def step_of(*behind):
    optimizer = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-2))
    return fl.pipe(loss, fl.grad, dp_sgd(0.1, 0.5), *behind, fl.update(optimizer), fl.ema(0.9))


STEPS = {"plain": step_of(), "fp16": step_of(fl.amp("fp16", interval=2))}


@pytest.mark.parametrize("name", STEPS)
def test_laws_1_2_3_8_10_and_11(name):
    step = STEPS[name]
    state = state_of(step)
    bad = (arrays()[0] * torch.nan, arrays()[1])
    testing.check_init(step, net())
    testing.check_pure(step, state, arrays())
    testing.check_repeatable(step, state, arrays())
    testing.check_skips(step, step(state, arrays())[0], bad)
    testing.check_stable(step, state, arrays())
    testing.check_resumes(step, state, fl.Batches(arrays(20), 8, seed=3), steps=5, at=(2, 4))


def test_law_7_with_dropout_and_with_its_noise():
    bad = (arrays()[0] * torch.nan, arrays()[1])
    step = STEPS["plain"]
    testing.check_compiles(step, state_of(step), [arrays(), bad])


def test_compiled_it_keeps_no_gradient_of_an_example():
    """Of linear layers: their norms and their sum follow from what goes in and comes back."""
    shapes = []

    def backend(graph, inputs):
        values = [node.meta.get("val") for node in graph.graph.nodes]
        shapes.extend(tuple(v.shape) for v in values if isinstance(v, torch.Tensor))
        return graph

    step = fl.compile(STEPS["plain"], backend=backend)
    step(state_of(STEPS["plain"]), arrays())
    assert (7, 1, 5) in shapes  # what goes into the second layer
    assert not {(7, 5, 6), (7, 6, 5), (7, 3, 5), (7, 5, 3)} & set(shapes)


def test_a_population_has_the_masks_and_the_noise_of_its_members():
    step = STEPS["plain"]
    testing.check_vmaps(step, [step.init(net, seed=i) for i in range(3)], arrays())


@pytest.mark.parametrize(
    "around",
    [
        fl.accumulate(2),
        fl.schemes.sam(0.1),
        fl.schemes.extragradient(0.1),
        fl.schemes.evolution(0.1, draws=2),
        fl.schemes.noise_scale(2),
    ],
)
def test_nothing_around_it_gives_away_more_than_is_counted(around):
    private = dp_sgd(1.0, noise=1.0)
    with pytest.raises(ValueError, match="Put dp_sgd behind"):
        fl.pipe(loss, fl.grad, private, around)
    fl.pipe(loss, fl.grad, fl.schemes.sam(0.1), private)


def test_errors():
    stage = dp_sgd(1.0, 1.0)(fl.grad(loss))
    normed = stage.init(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match=r"BatchNorm normalizes an example by others: 0\. Use"):
        stage(normed, arrays())
    with pytest.raises(ValueError, match=r"one leading dimension.* got f32\[7,6\], 3"):
        stage(state_of(), (arrays()[0], 3))
    with pytest.raises(ValueError, match="keeps memory, which dp_sgd would have for each example"):
        fl.pipe(loss, fl.grad, fl.amp("fp16"), dp_sgd(1.0, 1.0))
    with pytest.raises(ValueError, match="dp_sgd was given a stage that is sharded"):
        fl.shard(STEPS["plain"], fl.mesh())

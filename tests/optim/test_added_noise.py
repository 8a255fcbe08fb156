"""Noise on gradients: its variance by step, and that it is a function of the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.tensors import Tensors

LIKE = {"backend": "aot_eager"}


def loss(model, batch):
    return model(batch).square().mean()


def flat(model, batch):
    return 0 * model(batch).sum()


def net():
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))


def step_of(transform, loss=loss, last=None, k=1):
    part = [fl.accumulate(k)] if k > 1 else []
    update = fl.update(fl.optim.chain(transform, last or fl.optim.sgd(1.0)))
    return fl.pipe(loss, fl.grad, *part, update)


def batch(n=6):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("eta", "gamma"), [(0.3, 0.55), (0.01, 0.0), (1.0, 2.0)])
def test_the_variance_of_each_step_is_that_of_the_paper(eta, gamma):
    """Neelakantan et al., 2015: ``eta / (1 + t)**gamma``, as ``optax.add_noise``."""
    n = 300_000
    step = step_of(fl.optim.noise(eta, gamma), flat)
    state, before = step.init(lambda: nn.Linear(n, 1, bias=False)), None
    for t in range(5):
        after, _ = step(state, torch.ones(1, n))
        drawn = after.params.sub(state.params)["weight"].double().numpy()
        expected = eta / (1 + t) ** gamma
        assert np.isclose(drawn.var(), expected, rtol=4 * (2 / n) ** 0.5)
        assert abs(drawn.mean()) < 4 * (expected / n) ** 0.5
        assert before is None or abs(np.corrcoef(drawn, before)[0, 1]) < 4 / n**0.5
        state, before = after, drawn
    kurtosis = np.mean((drawn / drawn.std()) ** 4)  # 3 for normal numbers
    assert abs(kurtosis - 3) < 4 * (24 / n) ** 0.5


def test_the_step_is_that_of_the_optimizer_and_not_of_the_calls():
    step = step_of(fl.optim.noise(1.0, 2.0), flat)
    state = step.init(lambda: nn.Linear(10_000, 1, bias=False))
    for _ in range(3):  # skipped: calls move, the step does not
        state, metrics = step(state, torch.full((1, 10_000), torch.nan))
        assert float(metrics["skipped"]) == 1
    after, _ = step(state, torch.ones(1, 10_000))
    assert float(after.params.sub(state.params)["weight"].std()) == pytest.approx(1, rel=0.04)


@pytest.mark.parametrize("last", [fl.optim.adamw(0.1), fl.optim.sgd(0.1, momentum=0.9)], ids=repr)
def test_without_variance_it_is_nothing_to_the_bit(last):
    with_it = step_of(fl.optim.noise(0.0), last=last)
    without = fl.pipe(loss, fl.grad, fl.update(last))
    a, b = with_it.init(net, seed=0), without.init(net, seed=0)
    for _ in range(4):
        a, b = with_it(a, batch())[0], without(b, batch())[0]
    assert fl.tree_equal(a.params, b.params)
    tensor = step_of(fl.optim.noise(torch.tensor(0.0)), last=last)
    c = tensor.init(net, seed=0)
    for _ in range(4):
        c, _ = tensor(c, batch())
    torch.testing.assert_close(dict(a.params), dict(c.params), rtol=0, atol=0)


def test_update_and_apply_draw_the_same_from_the_same_stream():
    optimizer = fl.optim.chain(fl.optim.noise(0.3), fl.optim.adamw(0.1))
    params = Tensors({"w": torch.ones(4, 9), "b": torch.ones(3)})
    memory = optimizer.init(params)
    torch.manual_seed(0)
    updates, one = optimizer.update(params, memory, params, 0)
    torch.manual_seed(0)
    applied, other = optimizer.apply(params, memory, params, 0, True)
    torch.testing.assert_close(dict(params.add(updates)), dict(applied))
    torch.testing.assert_close(one["adamw"], other["adamw"])


def test_it_adds_the_same_whatever_the_micro_batches_and_whatever_is_before_it():
    def noise_of(k, make=lambda eta: fl.optim.noise(eta)):
        moved = []
        for eta in (0.0, 0.5):
            step = step_of(make(eta), k=k)
            moved.append(step(step.init(net, seed=0), batch())[0].params)
        return dict(moved[1].sub(moved[0]))

    torch.testing.assert_close(noise_of(1), noise_of(3), rtol=1e-4, atol=1e-6)
    scaled = lambda eta: fl.optim.chain(fl.optim.scale_by(0.1), fl.optim.noise(eta))  # noqa: E731
    torch.testing.assert_close(noise_of(1), noise_of(1, scaled), rtol=1e-4, atol=1e-6)


def test_each_of_two_draws_numbers_of_its_own():
    """Under two labels, in one chain, and in two parts of a sequence."""
    labels = fl.optim.by_label(
        {each: fl.optim.chain(fl.optim.noise(0.5), fl.optim.sgd(1.0)) for each in "ab"},
        {"first*": "a", "*": "b"},
    )
    model = nn.ModuleDict({name: nn.Linear(60, 60, bias=False) for name in ("first", "second")})
    zero = lambda model, x: 0 * sum(part(x).sum() for part in model.values())  # noqa: E731
    part = fl.update(fl.optim.chain(fl.optim.noise(0.5), fl.optim.sgd(1.0)))
    for step in (
        fl.pipe(zero, fl.grad, fl.update(labels)),
        fl.sequence(
            a=fl.pipe(zero, fl.grad(only="first.*"), part),
            b=fl.pipe(zero, fl.grad(only="second.*"), part),
        ),
    ):
        state = step.init(model)
        moved = step(state, torch.ones(2, 60))[0].params.sub(state.params)
        both = torch.stack([w.flatten() for w in moved.values()])
        assert both.std(1).sub(0.5**0.5).abs().max() < 0.05
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_donated_step_draws_what_the_step_draws(dtype):
    step = step_of(fl.optim.noise(0.3), last=fl.optim.adamw(0.1))
    donated = fl.compile(step, donate=True, **LIKE)
    make = lambda: step.init(lambda: net().to(dtype), seed=0)  # noqa: E731
    a, b = make(), make()
    for _ in range(3):
        a, b = step(a, batch().to(dtype))[0], donated(b, batch().to(dtype))[0]
    torch.testing.assert_close(dict(a.params), dict(b.params))


def test_an_ensemble_and_a_compiled_step_draw_the_same_to_the_bit():
    step = step_of(fl.optim.noise(0.3), flat)
    many = fl.ensemble(step, 3)
    compiled = [fl.compile(each, **LIKE) for each in (step, many)]
    start = many.init(net, seed=5)
    for run, made in ((many, start), (compiled[1], start)):
        for _ in range(2):
            made, _ = run(made, batch())
        for i in range(3):
            for single in (step, compiled[0]):
                state = fl.member(start, i)
                for _ in range(2):
                    state, _ = single(state, batch())
                assert fl.tree_equal(fl.member(made, i).params, state.params)

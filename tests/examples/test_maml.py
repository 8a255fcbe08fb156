"""MAML on sine curves: outer gradients against differences, and what is learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


@pytest.fixture
def maml(example):
    return example("maml")


def begin(maml, monkeypatch, rate, dtype=torch.float32):
    """From torch's own initial parameters and at a larger rate, for which few steps are enough."""
    plain = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    step = maml.learning(rate)
    start = step.init(lambda: plain().to(dtype), seed=0)
    monkeypatch.setattr(maml, "inner", step)
    monkeypatch.setattr(maml, "start", start)
    return step, start


def test_the_outer_gradient_against_differences(maml, monkeypatch):
    step, start = begin(maml, monkeypatch, 0.01, torch.float64)
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


def test_a_few_steps_learn_a_sine_from_what_was_learned(maml, monkeypatch):
    monkeypatch.setattr(maml, "INNER", 3)
    begin(maml, monkeypatch, 0.02)
    before = maml.errors(maml.start.params, 3, rate=0.02)[-1].mean()
    assert maml.errors(maml.train(iterations=150), 3, rate=0.02)[-1].mean() < 0.7 * before


def test_errors_are_those_of_a_loop_of_torch(maml):
    found = maml.errors(maml.start.params, steps=2, rate=0.05)[:, :3]
    (x, y), (others, truth) = maml.sines(600, torch.Generator().manual_seed(1))
    for task in range(3):
        model = fl.to_module(maml.start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for row in found[:, task]:
            error = (model(others[task]) - truth[task]).square().mean()
            assert float(row) == pytest.approx(error.item(), rel=1e-4)
            optimizer.zero_grad()
            (model(x[task]) - y[task]).square().mean().backward()
            optimizer.step()


def test_it_is_one_command(maml, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    curves = maml.main(["--iterations", "3", "--plot", str(tmp_path / "maml.png")])
    assert [len(curve) for each in curves.values() for curve in each.values()] == [11] * 6
    assert (tmp_path / "maml.png").stat().st_size > 1000
    assert "first-order MAML" in capsys.readouterr().out


@pytest.mark.parametrize("order", ["after", "first_order"])
def test_the_pipeline_has_the_mean_gradient_of_the_tasks(maml, order):
    outer = getattr(maml, order)
    tasks = maml.sines(maml.TASKS, torch.Generator().manual_seed(0))
    each = torch.func.vmap(torch.func.grad(outer), in_dims=(None, 0, 0))(maml.start.params, *tasks)
    _, grads = fl.grad(maml.of_tasks(outer))(maml.start, tasks)
    for name, gradient in each.items():
        torch.testing.assert_close(grads.mean[name], gradient.mean(0), rtol=1e-4, atol=1e-6)

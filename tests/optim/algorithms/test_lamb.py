from __future__ import annotations

import pytest
import torch

from fnloop.optim.algorithms.lamb import lamb
from fnloop.values.tensors import Tensors


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_follows_algorithm_2_of_the_paper(decay):
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (3,)}
    draw = lambda s: torch.randn(s, generator=generator, dtype=torch.float64)  # noqa: E731
    start = {n: draw(s) for n, s in shapes.items()}
    lr, b1, b2, eps = 0.01, 0.9, 0.999, 1e-6
    optimizer = lamb(lr, b1, b2, eps, decay)
    x, m, v = (
        dict(start),
        {n: 0 * p for n, p in start.items()},
        {n: 0 * p for n, p in start.items()},
    )
    params = Tensors(start)
    memory = optimizer.init(params)
    for t in range(1, 101):
        grads = Tensors({n: draw(s) for n, s in shapes.items()})
        params, memory = optimizer.apply(grads, memory, params, t - 1, True)
        for name, g in grads.items():
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            r = (m[name] / (1 - b1**t)) / ((v[name] / (1 - b2**t)).sqrt() + eps)
            u = r + decay * x[name]
            x[name] = x[name] - lr * x[name].norm() / u.norm() * u
    torch.testing.assert_close(dict(params), x, rtol=1e-9, atol=1e-11)


def test_parameters_that_are_zero_move_by_the_direction_itself():
    params = Tensors({"b": torch.zeros(4)})
    optimizer = lamb(0.1, weight_decay=0.0, eps=0.0)
    grads = Tensors({"b": torch.full((4,), 3.0)})
    new, _ = optimizer.apply(grads, optimizer.init(params), params, 0, True)
    torch.testing.assert_close(new["b"], torch.full((4,), -0.1))


def test_a_gradient_of_zero_moves_nothing():
    params = Tensors({"b": torch.ones(4)})
    optimizer = lamb(0.1, weight_decay=0.0)
    new, _ = optimizer.apply(params.zeros(), optimizer.init(params), params, 0, True)
    torch.testing.assert_close(new["b"], params["b"])

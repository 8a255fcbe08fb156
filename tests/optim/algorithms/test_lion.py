from __future__ import annotations

import torch

from fnloop.optim.algorithms.lion import lion
from fnloop.values.tensors import Tensors


def test_follows_algorithm_2_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (3,)}
    start = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    lr, b1, b2, decay = 0.01, 0.9, 0.99, 0.1
    optimizer = lion(lr, b1, b2, decay)
    theta, momentum = dict(start), {n: 0 * p for n, p in start.items()}
    params = Tensors(start)
    memory = optimizer.init(params)
    for step in range(100):
        grads = {}
        for name, s in shapes.items():
            g = torch.randn(s, generator=generator, dtype=torch.float64)
            if step % 10 == 0:
                g[0] = 0.0  # sign of zero
            c = b1 * momentum[name] + (1 - b1) * g
            theta[name] = theta[name] - lr * (torch.sign(c) + decay * theta[name])
            momentum[name] = b2 * momentum[name] + (1 - b2) * g
            grads[name] = g
        params, memory = optimizer.apply(Tensors(grads), memory, params, step, True)
    torch.testing.assert_close(dict(params), theta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dict(memory["lion"]["mu"]), momentum, rtol=1e-10, atol=1e-12)

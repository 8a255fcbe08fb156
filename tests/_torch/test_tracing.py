"""Which transforms of torch.func are around."""

from __future__ import annotations

import torch

from fnloop._torch import slopes
from fnloop._torch.tracing import derivatives, in_forward_mode, transformed, vmaps


def test_transforms_that_differentiate_are_told_from_vmap():
    slopes.prepare()
    seen = []

    def f(x):
        seen.append((transformed(), derivatives(), in_forward_mode(), vmaps()))
        return x.square().sum()

    x = torch.ones(2, 3)
    f(x)
    torch.func.vmap(f)(x)
    torch.func.vmap(torch.func.vmap(f))(x)
    torch.func.grad(f)(x)
    torch.func.jvp(f, (x,), (x,))
    torch.func.vmap(torch.func.grad(f))(x)
    assert seen == [
        (False, 0, False, 0),
        (True, 0, False, 1),
        (True, 0, False, 2),
        (True, 1, False, 0),
        (True, 1, True, 0),
        (True, 1, False, 1),
    ]

"""The optimizers that a module is given when it steps them itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fnloop.lightning.hand import clip_gradients


@pytest.mark.parametrize("how", ["norm", "Norm", "value", "VALUE", None])
def test_gradients_are_clipped_as_torch_does(how):
    def made():
        layer = nn.Linear(3, 2)
        for p in layer.parameters():
            p.grad = torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape)
        return layer

    own, theirs = made(), made()
    clip_gradients(torch.optim.SGD(own.parameters()), 0.5, how)
    value = str(how).lower() == "value"
    clip = nn.utils.clip_grad_value_ if value else nn.utils.clip_grad_norm_
    clip(theirs.parameters(), 0.5)
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("value", [None, 0.5])
def test_another_way_of_clipping_is_refused(value):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=r'clip_gradients\(.* takes "norm" or "value", got'):
        clip_gradients(optimizer, value, "nrm")

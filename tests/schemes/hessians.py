"""The whole Hessian of a small model, by ``torch.func.hessian``."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call


def whole_hessian(model, state, batch):
    """Of the cross-entropy of `batch`, over the parameters in their order: [n, n]."""
    (x, y), names = batch, list(state.params)
    shapes = [state.params[name].shape for name in names]

    def value(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        params = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, params, x), y)

    return torch.func.hessian(value)(torch.cat([p.flatten() for p in state.params.values()]))

"""Reading the value of a 0-d tensor, where that is free and safe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.tracing import opaque


def look(value: Any) -> Any:
    """Return a 0-d tensor as a Python number where that is free and safe; else return it unchanged.

    It stays a tensor inside ``torch.func`` transforms and `fl.compile` (it has no concrete value),
    on an accelerator (reading it would synchronize), and where it requires gradients.

    >>> look(torch.tensor(3)), torch.func.vmap(lambda x: look(x) + 1)(torch.zeros(2))
    (3, tensor([1., 1.]))
    """
    if not isinstance(value, Tensor) or value.ndim or opaque():
        return value
    if not value.is_cpu or (value.requires_grad and torch.is_grad_enabled()):
        return value
    return value.item()


def look_all(values: Iterable[Any]) -> list[Any]:
    """`look` at several values at once."""
    if opaque():
        return list(values)
    recorded = torch.is_grad_enabled()
    return [
        v.item()
        if isinstance(v, Tensor) and v.is_cpu and not v.ndim and not (recorded and v.requires_grad)
        else v
        for v in values
    ]

"""Reading the value of a 0-d tensor, where that is free and safe."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.tracing import opaque


def look(value: Any, detach: bool = False) -> Any:
    """Return a 0-d tensor as a Python number where that is free and safe; else return it unchanged.

    It stays a tensor inside ``torch.func`` transforms and `fl.compile` (it has no concrete value),
    on an accelerator (reading it would synchronize), and where it requires gradients.

    Args:
        value: A tensor, or anything else.
        detach: Read what requires gradients too; where it stays a tensor, it is detached.

    >>> look(torch.tensor(3)), torch.func.vmap(lambda x: look(x) + 1)(torch.zeros(2))
    (3, tensor([1., 1.]))
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim or not value.is_cpu or opaque():
        return value.detach() if detach else value
    if not detach and value.requires_grad and torch.is_grad_enabled():
        return value
    return value.item()


def look_all(tensors: Sequence[Tensor]) -> list[Any]:
    """`look` at several tensors at once."""
    if opaque():
        return list(tensors)
    if list(map(_FACTS, tensors)).count(_READABLE) == len(tensors):
        return list(map(Tensor.item, tensors))
    return list(map(look, tensors))


_FACTS, _READABLE = attrgetter("is_cpu", "ndim", "requires_grad"), (True, 0, False)


def counted(count: Tensor, number: Any) -> Tensor:
    """The 0-d tensor `count` after one more: ``count + 1``.

    Args:
        count: The tensor.
        number: What `look` returns for it.
    """
    if isinstance(number, Tensor):
        return count + 1
    # A third of the time of an addition, which first makes a tensor of the number.
    return torch.scalar_tensor(number + 1, dtype=count.dtype, device=count.device)

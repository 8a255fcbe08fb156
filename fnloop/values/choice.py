"""Looking at values or selecting by them: decided here, for all stages and optimizers."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch.tracing import opaque
from fnloop.trees.nodes import tree_map
from fnloop.values.tensors import Tensors

Flag: TypeAlias = bool | Tensor
"""A bool where values may be looked at, else bool[]."""


def look(value: Any) -> Any:
    """A 0-d tensor as a number, where Python may look at it without waiting; else as it is.

    It may not inside ``torch.func`` transforms and `fl.compile`, where there is no value, nor on an
    accelerator, which would have to be waited for, nor where the derivative would be lost.

    >>> look(torch.tensor(3)), torch.func.vmap(lambda x: look(x) + 1)(torch.zeros(2))
    (3, tensor([1., 1.]))
    """
    if not isinstance(value, Tensor) or value.ndim or opaque():
        return value
    if not value.is_cpu or (value.requires_grad and torch.is_grad_enabled()):
        return value
    return value.item()


def invert(flag: Flag) -> Flag:
    """The opposite."""
    return ~flag if isinstance(flag, Tensor) else not flag


def both(a: Flag, b: Flag) -> Flag:
    """Whether both are true."""
    if a is True or b is False:
        return b
    return a if b is True or a is False else a & b


def either(a: Flag, b: Flag) -> Flag:
    """Whether one of them is true."""
    return invert(both(invert(a), invert(b)))


def select(flag: Flag, new: Any, old: Any) -> Any:
    """`new` if `flag`, else `old`: a choice, or a selection leaf by leaf.

    Args:
        flag: Which of the two.
        new: A tree of tensors.
        old: One of the same structure; in dicts, what is in `new` alone stays.

    >>> select(True, {"a": 1}, {"a": 2})
    {'a': 1}
    >>> select(torch.tensor(False), {"a": torch.tensor(1)}, {"a": torch.tensor(2)})
    {'a': tensor(2)}
    """
    if flag is True or new is old:
        return new
    if isinstance(new, Tensors):
        return new.where(flag, old)
    if isinstance(new, dict) and isinstance(old, dict):
        return {k: select(flag, own, old[k]) if k in old else own for k, own in new.items()}
    if flag is False:
        return old
    if isinstance(new, Tensor):
        return torch.where(flag, new, torch.as_tensor(old, dtype=new.dtype, device=new.device))
    return tree_map(lambda x, y: torch.where(flag, x, y), new, old)


def stepped(before: Any, after: Any) -> Flag:
    """Whether a training step was not skipped: whether ``state.step`` has moved."""
    return False if after.step is before.step else look(after.step != before.step)

"""Data-dependent choices: Python branches on the CPU, `torch.where` under a trace or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fnloop.trees.nodes import tree_map
from fnloop.trees.paths import tree_items
from fnloop.values.changed_kind import ChangedKindError
from fnloop.values.looking import look
from fnloop.values.tensors import Tensors

T = TypeVar("T")

Flag: TypeAlias = bool | Tensor
"""A Python bool where `look` can read the value, else a tensor bool[]."""


def invert(flag: Flag) -> Flag:
    """Logical not."""
    return ~flag if isinstance(flag, Tensor) else not flag


def both(a: Flag, b: Flag) -> Flag:
    """Logical and."""
    if a is True or b is False:
        return b
    return a if b is True or a is False else a & b


def all_of(*flags: Flag) -> Flag:
    """Logical and of all.

    >>> all_of(True, torch.tensor(True), True), all_of(torch.tensor(True), False)
    (tensor(True), False)
    """
    result: Flag = True
    for flag in flags:
        if flag is not True:
            result = both(result, flag)
    return result


def either(a: Flag, b: Flag) -> Flag:
    """Logical or."""
    return invert(both(invert(a), invert(b)))


def select(flag: Flag, new: Any, old: Any) -> Any:
    """Return `new` if `flag`, else `old`. A tensor flag selects leaf by leaf.

    Args:
        flag: A bool or bool[].
        new: A tree of tensors.
        old: A tree of the same structure. Dict keys that only `new` has keep their value.

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
        if isinstance(old, Tensor) and new.shape != old.shape:
            raise ChangedKindError("a tensor of its memory", old, new)
        return torch.where(flag, new, torch.as_tensor(old, dtype=new.dtype, device=new.device))
    return tree_map(lambda x, y: torch.where(flag, x, y), new, old)


def select_members(flags: Tensor, new: T, old: T) -> T:
    """Of the members whose flag is true what is `new`, of the others what is `old`.

    Args:
        flags: bool[n].
        new: A tree of tensors of n members, such as a population.
        old: A tree of the same structure.

    >>> select_members(torch.tensor([True, False]), torch.ones(2, 3), torch.zeros(2, 3))
    tensor([[1., 1., 1.],
            [0., 0., 0.]])
    """

    def of(now: Tensor, before: Tensor) -> Tensor:
        if now.shape != before.shape:
            raise _changed(new, old)
        return torch.where(flags.reshape(-1, *[1] * (now.ndim - 1)), now, before)

    return tree_map(of, new, old)


def _changed(new: Any, old: Any) -> ChangedKindError:
    pairs = zip(tree_items(new), tree_items(old), strict=True)
    return next(
        ChangedKindError(path, before, now)
        for (path, now), (_, before) in pairs
        if now.shape != before.shape
    )


def choose(flag: Flag, new: Callable[[], T], old: Callable[[], T]) -> T:
    """What `new` returns if `flag`, else what `old` does; only for a tensor are both called.

    >>> choose(True, lambda: 1.0, lambda: 1 / 0)
    1.0
    """
    if isinstance(flag, Tensor):
        return select(flag, new(), old())
    return new() if flag else old()


def stepped(before: Any, after: Any) -> Flag:
    """Whether the training step from `before` to `after` was committed (``state.step`` moved)."""
    return False if after.step is before.step else look(after.step != before.step)

"""Which tensors a loss function brings along from outside."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop.trees.nodes import is_tree, tree_leaves


def closed_over(function: Any) -> tuple[Tensor, ...]:
    """The tensors that a function finds in its closure, its defaults or its module.

    Other functions that it finds there are searched too, and containers and trees. The parameters
    of other modules (a teacher's) are left out: they require gradients by default, whether or not
    anybody asks for those.

    >>> weight = torch.tensor(2.0)
    >>> def make(weight):
    ...     return lambda model, batch: weight * model(batch).mean()
    >>> closed_over(make(weight)) == (weight,)
    True
    """
    return tuple(_tensors(function, set()))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, torch.nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not isinstance(value, torch.nn.Parameter):
            yield value
        return
    for part in _parts(value):
        yield from _tensors(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    """What can be reached from a value in one step, as far as it matters."""
    if isinstance(value, types.FunctionType):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        for name in value.__code__.co_names:
            found = value.__globals__.get(name)
            local = getattr(found, "__module__", None) == value.__module__
            if isinstance(found, Tensor) or (isinstance(found, types.FunctionType) and local):
                yield found
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, Mapping):
        yield from value.values()
    elif is_tree(value):
        yield getattr(value, "call", None)
        yield from tree_leaves(value)

"""Which tensors a loss function brings along from outside."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fnloop.trees.nodes import is_tree, tree_leaves


def closed_over(function: Any, modules: bool = False) -> tuple[Tensor, ...]:
    """The tensors that a function finds in its closure, its defaults or its module.

    Other functions that it finds there are searched too, and containers, trees and attributes of
    objects. The parameters of other modules (a teacher's) are left out: they require gradients by
    default, whether or not anybody asks for those.

    Args:
        function: The function, or an object with ``__call__``.
        modules: Whether to take the parameters, buffers and tensors of other modules too.

    >>> weight = torch.tensor(2.0)
    >>> def make(weight):
    ...     return lambda model, batch: weight * model(batch).mean()
    >>> closed_over(make(weight)) == (weight,)
    True
    """
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [function]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _NOT_SEARCHED):
            continue
        if isinstance(value, _OF_MODULES) and not modules:
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            waiting += [*value.parameters(), *value.buffers(), *_attributes(value)]
        elif isinstance(value, Tensor):
            found.append(value)
        else:
            waiting += _parts(value)
    return tuple(found)


_OF_MODULES = (torch.nn.Module, torch.nn.Parameter)
_NOT_SEARCHED = (
    types.ModuleType,
    type,
    str,
    bytes,
    int,
    float,
    type(None),
)


def _attributes(module: torch.nn.Module) -> list[Tensor]:
    """Tensors that the modules in a module keep as plain attributes."""
    values = [value for one in module.modules() for value in vars(one).values()]
    return [value for value in values if isinstance(value, Tensor)]


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
            # Functions of other modules, such as torch's, use no tensors of the user.
            own = getattr(found, "__module__", None) == value.__module__
            if own or not callable(found) or isinstance(found, torch.nn.Module):
                yield found
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    else:
        yield getattr(type(value), "__call__", None)  # noqa: B004 - the function itself is wanted
        yield from _fields(value)
        if is_tree(value):
            yield from tree_leaves(value)


def _fields(value: Any) -> Iterable[Any]:
    """The attributes of an object; of a tree's, those that it was made of, and no caches."""
    if is_tree(value) and dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return getattr(value, "__dict__", {}).values()

"""A private copy of a module, and the places in it where tensors go."""

from __future__ import annotations

import collections
import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fnloop.values.module_parts import assigned_by_torch
from fnloop.values.parameter_attributes import copied_attributes


class TensorPlace(NamedTuple):
    """A place in a module where a tensor of the state goes during a call.

    Attributes:
        owner: A dict or a list.
        key: The key or index in it.
        name: Name of the tensor in the state.
    """

    owner: Any
    key: Any
    name: str


class Places:
    """Places that are read and filled all at once, without bytecode for each."""

    def __init__(self, places: Iterable[TensorPlace]) -> None:
        self._all = list(places)
        self._owners = [place.owner for place in self._all]
        self._keys = [place.key for place in self._all]
        self._names = [place.name for place in self._all]

    def __iter__(self) -> Iterator[TensorPlace]:
        return iter(self._all)

    def standing(self) -> list[Any]:
        """What is there now."""
        return list(map(operator.getitem, self._owners, self._keys))

    def named(self) -> dict[str, Any]:
        """The same by name; of two places with one name, the first counts."""
        return dict(zip(reversed(self._names), reversed(self.standing()), strict=True))

    def fill(self, tensors: Iterable[Any]) -> None:
        """Put `tensors` there, in order; fewer of them fill the first places."""
        collections.deque(map(operator.setitem, self._owners, self._keys, tensors), maxlen=0)

    def fill_from(self, named: Mapping[str, Any]) -> None:
        """Put there what has their names."""
        self.fill(map(named.__getitem__, self._names))


def places(owners: Iterable[dict[str, Any]], names: Mapping[int, str]) -> list[TensorPlace]:
    """The places of the tensors in some dicts; `names` has their names by their ids."""
    return [
        TensorPlace(owner, key, names[id(tensor)])
        for owner in owners
        for key, tensor in owner.items()
        if tensor is not None
    ]


def private_copy(module: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A copy of a module; and the objects that were copied for it, by the ids of their copies."""
    memo: dict[int, Any] = {id(weight): weight.detach().clone() for weight in _recomputed(module)}
    try:
        private = copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            "fnloop keeps a private copy of your model, and "
            f"copy.deepcopy({type(module).__name__}) failed: {error}. The usual cause is an "
            "attribute that cannot be copied (a lock, an open file, an iterator, a tensor that is "
            "the result of a computation, a sparse tensor other than COO); keep it outside the "
            "module, or make it in forward."
        ) from error
    for parameter in module.parameters():  # which torch copies without their attributes
        if id(parameter) in memo:
            vars(memo[id(parameter)]).update(copied_attributes(parameter))
    originals = memo.get(id(memo), [])  # deepcopy keeps them alive there
    return private, {id(memo[id(thing)]): thing for thing in originals if id(thing) in memo}


def _recomputed(module: nn.Module) -> list[Tensor]:
    """The weights that torch's own hooks compute anew before each call, which have a graph."""
    values = [getattr(m, name, None) for m in module.modules() for name in assigned_by_torch(m)]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def placeholder(tensor: Tensor) -> Tensor:
    """A tensor or parameter of the same shape and dtype, without memory."""
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        vars(empty).update(vars(tensor))
    return empty

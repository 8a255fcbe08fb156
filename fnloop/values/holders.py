"""Whether anything but a state refers to its tensors, so that they may be overwritten."""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.references import LONE, holders_of, storage_of, users_of
from fnloop._torch.tracing import opaque, without_transforms
from fnloop.values.state import State
from fnloop.values.tensors import Tensors

ONCE = sum(map(sys.getrefcount, [object()]))
"""What ``sys.getrefcount`` returns for an object in one list; each other reference adds one."""

with without_transforms():  # fnloop may be imported inside one
    _lone = torch.empty(1, device="cpu")
    _storage, _views = [storage_of(_lone)], _lone.split(1)
_STORAGE = sum(map(sys.getrefcount, _storage))
"""The same for a tensor's storage, which nobody else refers to."""

_VIEWED = sum(map(sys.getrefcount, [_lone])) - 1 - ONCE
"""How many more references from Python a tensor has that has views."""

_OWN_TUPLES = ([ONCE + 1, ONCE + 1], [ONCE + 3, ONCE + 3])
"""The same for the two tuples of a `Tensors`, storages and views; or one tuple that is both."""


def own(state: State) -> None:
    """Mark the tensors of a new state as its own.

    A stage may have put the same tensors into two places, or the user's: they are `seen`, so that
    whoever overwrites them looks for other references first.
    """
    found: list[Any] = [state.params, state.buffers]
    _collect(state.slots, found)
    for part in found:
        if type(part) is Tensors:
            part.seen = True
            part.owned = not opaque() and all([_is_of_torch(s) for s in part.peek_storages()])


def _is_of_torch(tensor: Tensor) -> bool:
    """Whether it is a plain tensor whose memory PyTorch has allocated, in one piece."""
    plain = type(tensor) is Tensor and tensor.layout is torch.strided
    return plain and storage_of(tensor).resizable()


def free_params(state: State, after: State) -> Set[int]:
    """The ``id`` of the parameters, if nothing but two states refers to them; else nothing.

    Args:
        state: A state.
        after: The same state, or one that has been made of it and may share its parts.
    """
    shared = after is not state and after.params is state.params
    if list(map(sys.getrefcount, [state.params])) != [ONCE + 1 + shared]:
        return frozenset()
    # Nobody need have taken them out of the state: the model has had views of them.
    state.params.seen = True
    return _free([state.params])


def free_memory(state: State, after: State, slot: str) -> Set[int]:
    """The ``id`` of each `Tensors` in a slot that nothing but two states refers to.

    Args:
        state, after: As for `free_params`.
        slot: The name of the slot.
    """
    objects: list[Any] = [state.slots, state.slots[slot]]
    if type(objects[1]) is dict:
        _collect(objects[1], objects)
    counts = [ONCE + 1] * len(objects)
    if after is not state:
        same = after.slots is state.slots
        counts[0] += same
        counts[1] += not same and after.slots.get(slot) is objects[1]
    return _free(objects) if list(map(sys.getrefcount, objects)) == counts else frozenset()


def _free(objects: list[Any]) -> Set[int]:
    return {id(part) for part in objects if type(part) is Tensors and _is_free(part)}


def _is_free(tensors: Tensors) -> bool:
    """Whether nobody else has a part of them, and a kernel runs no bytecode of a subclass."""
    plain = set(map(type, tensors.peek_storages())) <= _PLAIN
    return tensors.owned and plain and not (tensors.seen and is_held(tensors, ()))


_PLAIN = {Tensor}


def _collect(memory: dict[str, Any], found: list[Any]) -> bool:
    """Append the `Tensors` inside `memory`, and the dicts on the way; whether there are any."""
    if _SOUGHT.isdisjoint(map(type, memory.values())):
        return False
    before = len(found)
    for value in memory.values():
        kind = type(value)
        if kind is Tensors or (kind is dict and _collect(value, found)):
            found.append(value)
    return len(found) > before


_SOUGHT = {Tensors, dict}


def is_held(unit: Tensors, inputs: Sequence[Tensor]) -> bool:
    """Whether somebody else refers to a tensor of `unit`, or to a view of one."""
    if list(map(sys.getrefcount, [unit.peek_storages(), unit.peek()])) not in _OWN_TUPLES:
        return True
    storages, views = unit.peek_storages(), unit.peek()
    if views is storages and not inputs and _are_lone(storages):
        return False
    lists = [storages, inputs] if views is storages else [storages, views, inputs]
    tensors = list({id(tensor): tensor for held in lists[:-1] for tensor in held}.values())
    # References from C++: a view refers to its base.
    views_of = Counter([id(t._base) for t in tensors if t._is_view()])
    expected = [1 + views_of[id(tensor)] for tensor in tensors]
    if list(map(holders_of, tensors)) != expected:
        return True
    # References from Python.
    holders = Counter([id(tensor) for held in lists for tensor in held])
    expected = [ONCE + holders[id(t)] + (views_of[id(t)] and _VIEWED) for t in tensors]
    if list(map(sys.getrefcount, tensors)) != expected:
        return True
    # Other tensors on the same memory, and references to the storages from Python.
    memory = list(map(storage_of, tensors))
    users = Counter([storage._cdata for storage in memory])
    if any([users_of(address) != LONE + n - 1 for address, n in users.items()]):
        return True
    expected = [_STORAGE + users[storage._cdata] - 1 for storage in memory]
    return list(map(sys.getrefcount, memory)) != expected  # a loop variable would be a reference


def _are_lone(tensors: tuple[Tensor, ...]) -> bool:
    """Whether nothing but this tuple refers to its tensors and to their memory."""
    memory = list(map(storage_of, tensors))
    return (
        set(map(sys.getrefcount, tensors)) == _ONCE
        and set(map(holders_of, tensors)) == _ONE
        and set(map(users_of, map(_ADDRESS, memory))) == _LONE
        and set(map(sys.getrefcount, memory)) == _ALONE
    )


_ONCE, _ONE, _LONE, _ALONE = {ONCE}, {1}, {LONE}, {_STORAGE}
_ADDRESS = operator.attrgetter("_cdata")


class Held:
    """Objects, and the reference count of each if nobody else refers to it."""

    def __init__(self, objects: list[Any], holders: Iterable[int]) -> None:
        self._objects = objects
        self._expected = [ONCE + n for n in holders]

    def by_nobody(self) -> bool:
        """Whether nobody else refers to any of them."""
        return list(map(sys.getrefcount, self._objects)) == self._expected

    def held(self) -> list[bool]:
        """Which of them somebody else refers to."""
        return list(map(operator.ne, map(sys.getrefcount, self._objects), self._expected))


class Shared:
    """Single tensors, and whether other tensors share their memory."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._storages = list(map(storage_of, tensors))
        self._addresses = [storage._cdata for storage in self._storages]

    def by_nobody(self) -> bool:
        """Whether none shares its memory."""
        return not any(self.held())

    def held(self) -> list[bool]:
        """Which of them share their memory."""
        users = [users_of(address) != LONE for address in self._addresses]
        holders = [n != _STORAGE for n in map(sys.getrefcount, self._storages)]
        return list(map(operator.or_, users, holders))

"""The memory of a compiled step's state, and whether somebody else looks at it."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.graph import LONE, storage_of, users_of
from fnloop.transforms.layout import Layout, Layouts, Unit
from fnloop.values.state import State


class Arena:
    """A state's tensors as a graph takes them, kept with the state that they make.

    Attributes:
        layout: Of the state.
        tensors: Vectors, and single tensors, in the order of the layout.
        views: By unit: its views into the vectors; None for a single tensor.
        units: What the state has: dicts of views, and the single tensors.
        inputs: What a graph takes: all tensors, then all views.
    """

    __slots__ = ("_foreign", "_parts", "_watch", "inputs", "layout", "tensors", "units", "views")

    def __init__(
        self,
        layout: Layout,
        tensors: list[Tensor],
        views: list[list[Tensor] | None],
        units: list[Unit],
    ) -> None:
        self.layout = layout
        self.tensors = tensors
        self.views = views
        self.units = units
        self.inputs = [*tensors, *itertools.chain(*filter(None, views))]
        self._parts: list[Any] = []
        self._watch: _Watch | None = None
        self._foreign: Set[int] = frozenset()  # not made by a step: never to be written to

    @classmethod
    def of(cls, state: State, layouts: Layouts) -> Arena:
        """The memory of `state`; what does not lie in vectors yet is copied into some."""
        before: Arena | None = state.__dict__.get(_KEY)
        if before is not None and before.layout in layouts and before._holds(state):
            return before
        layout = layouts.of(state)
        if before is not None and before.layout is not layout:
            before = None
        units = layout.flatten(state)
        tensors: list[Tensor] = []
        views: list[list[Tensor] | None] = []
        foreign: set[int] = set()
        copied: set[int] = set()
        for i, (start, stop, pack) in enumerate(layout.places):
            if before is not None and units[i] is before.units[i]:
                tensors += before.tensors[start:stop]
                views.append(before.views[i])
                foreign.update(before._foreign & set(range(start, stop)))
            elif pack is None:
                tensors.append(units[i])
                views.append(None)
                foreign.add(start)
            else:
                tensors += pack.join(units[i])
                made = pack.views(tensors[start:])
                views.append(made)
                units[i] = pack.dict(tensors[start:], made)
                copied.update(range(start, start + len(pack.groups)))
        arena = cls(layout, tensors, views, units)
        if copied:  # what is not is that of another state
            arena._foreign = set(range(len(tensors))) - copied
        else:  # only single tensors are others
            arena._foreign = foreign
            arena._belong(state)
        return arena

    @classmethod
    def settle(cls, state: State, layouts: Layouts) -> None:
        """Move the tensors of a state that nobody else has seen into vectors, in place.

        Each dict's tensors are freed as soon as they are copied: there never is a second state.
        """
        layout = layouts.of(state)
        units = layout.flatten(state)
        tensors: list[Tensor] = []
        views: list[list[Tensor] | None] = []
        for (start, _, pack), unit in zip(layout.places, units, strict=True):
            tensors += [unit] if pack is None else pack.join(unit)
            made = None if pack is None else pack.views(tensors[start:])
            views.append(made)
            if pack is not None and made is not None:
                unit.update(zip(pack.grouped, made, strict=True))
        arena = cls(layout, tensors, views, units)
        arena._foreign = set(range(len(tensors))) - layout.vectors
        arena._belong(state)

    def alone(self, state: State, written: Set[int]) -> Arena:
        """This memory, but for a copy of what will be written and somebody else looks at.

        Args:
            state: Of this memory.
            written: Places of the tensors that a graph writes to.
        """
        seen = written & self._foreign if self._foreign else self._foreign
        if state.__dict__.get(_KEY) is self:
            if self._watch is None or self._watch.written is not written:
                self._watch = _Watch(self, state, written)
            seen = self._watch.seen(state) | seen
        return self._with({i: self.tensors[i].clone() for i in seen}) if seen else self

    def advance(self, new: Mapping[int, Tensor], like: State, stable: bool) -> State:
        """The next state.

        Args:
            new: The tensors that have changed, by their place. What has not is shared, and so is
                what was written over.
            like: The state before, where all other parts come from.
            stable: Whether the new tensors have the strides of the old ones. If not, the next
                state has another layout.
        """
        if not new and like.__dict__.get(_KEY) is self:
            return like.replace()
        arena = self._with(new)
        after = self.layout.build(like, arena.units)
        if stable:
            arena._belong(after)
        else:
            after.__dict__.pop(_KEY, None)
        return after

    def _belong(self, state: State) -> None:
        self._parts = self.layout.parts(state)
        state.__dict__[_KEY] = self

    def _with(self, new: Mapping[int, Tensor]) -> Arena:
        """The same memory with some other tensors."""
        tensors, views, units = self.tensors.copy(), self.views.copy(), self.units.copy()
        for i, tensor in new.items():
            tensors[i] = tensor
        for i in {self.layout.unit_of[i] for i in new}:
            start, stop, pack = self.layout.places[i]
            if pack is None:
                units[i] = tensors[start]
            else:
                views[i] = made = pack.views(tensors[start:stop])
                units[i] = pack.dict(tensors[start:stop], made)
        arena = Arena(self.layout, tensors, views, units)
        arena._foreign = self._foreign - new.keys()
        return arena

    def _holds(self, state: State) -> bool:
        """Whether the state is still made of this memory."""
        return all(map(operator.is_, self.layout.parts(state), self._parts))


class _Watch:
    """How often each tensor that is to be written, and each dict on the way, is held.

    Whatever is held by more than one state and its arena is held by somebody who would see it
    change. So is memory that more tensors share than the vector and its views.

    Attributes:
        written: Places of the tensors that are to be written.
    """

    def __init__(self, arena: Arena, state: State, written: Set[int]) -> None:
        self.written = written
        layout = arena.layout
        parts = {id(part) for part in layout.parts(state)}
        units = {id(unit) for unit in arena.units}
        vectors = sorted(written & layout.vectors)
        of = [[i for i, _ in layout.parts_of(vector)] for vector in vectors]
        views = [arena.inputs[len(arena.tensors) + i] for i in itertools.chain(*of)]
        # Of singles: the state or a dict in it, the arena's tensors and inputs, perhaps its units
        # and its parts.
        self._places = sorted(written - layout.vectors)
        singles = [arena.tensors[i] for i in self._places]
        self._singles = _Held(singles, [3 + (id(t) in units) + (id(t) in parts) for t in singles])
        self._single_users = _Shared(singles, [0] * len(singles))
        # Of views: the dict, the arena's views and inputs. Of dicts: the state or another dict,
        # perhaps the arena's units and its parts.
        dicts: list[dict[str, Any]] = []
        targets = {id(t) for t in [*singles, *views]}
        for part in layout.parts(state):
            _collect(part, targets, dicts)
        self._others = _Held(
            [*views, *dicts],
            [3] * len(views) + [1 + (id(d) in units) + (id(d) in parts) for d in dicts],
        )
        self._other_users = _Shared([arena.tensors[i] for i in vectors], map(len, of))

    def seen(self, state: State) -> Set[int]:
        """The places of what somebody else looks at."""
        if (
            not self._others.by_nobody()
            or not self._other_users.by_nobody()
            or list(map(sys.getrefcount, [state.slots])) != [_ONCE + 1]
        ):
            return self.written
        if self._singles.by_nobody() and self._single_users.by_nobody():
            return frozenset()
        held = map(operator.or_, self._singles.held(), self._single_users.held())
        return {place for place, seen in zip(self._places, held, strict=True) if seen}


class _Held:
    """Objects, and how often each is held if nobody else does."""

    def __init__(self, objects: list[Any], holders: Iterable[int]) -> None:
        self._objects = objects
        self._expected = [_ONCE + n for n in holders]

    def by_nobody(self) -> bool:
        """Whether nobody else holds one."""
        return list(map(sys.getrefcount, self._objects)) == self._expected

    def held(self) -> list[bool]:
        """Which of them somebody else holds."""
        return list(map(operator.ne, map(sys.getrefcount, self._objects), self._expected))


class _Shared:
    """Memory of tensors, and how many views it has if nobody else has one."""

    def __init__(self, tensors: Iterable[Tensor], views: Iterable[int]) -> None:
        self._storages = list(map(storage_of, tensors))
        self._addresses = [storage._cdata for storage in self._storages]
        self._expected = [LONE + n for n in views]
        self._held = [_STORAGE] * len(self._expected)

    def by_nobody(self) -> bool:
        """Whether nobody else has a view."""
        return (
            list(map(users_of, self._addresses)) == self._expected
            and list(map(sys.getrefcount, self._storages)) == self._held
        )

    def held(self) -> list[bool]:
        """Of which of them somebody else has one."""
        users = map(operator.ne, map(users_of, self._addresses), self._expected)
        holders = map(operator.ne, map(sys.getrefcount, self._storages), self._held)
        return list(map(operator.or_, users, holders))


def _collect(node: Any, targets: Set[int], found: list[dict[str, Any]]) -> bool:
    """Add the dicts in `node` that lead to one of the targets; whether there are any."""
    if type(node) is not dict:
        return id(node) in targets
    leads = [_collect(value, targets, found) for value in node.values()]
    if any(leads):
        found.append(node)
    return any(leads)


_ONCE = sum(map(sys.getrefcount, [object()]))
"""What ``sys.getrefcount`` says of an object in one list; each further holder adds one."""

_lone = torch.empty(1)
_STORAGE = sum(map(sys.getrefcount, [storage_of(_lone)]))
"""The same of a storage that nobody else asked its tensor for."""

_KEY = "_arena"

"""The memory of a compiled step's state, and whether somebody else looks at it."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fnloop._torch.graph import storage_users
from fnloop.transforms.layout import Layout, Layouts, Unit
from fnloop.values import State


class Arena:
    """A state's tensors as a graph takes them, kept with the state that they make.

    Attributes:
        layout: Of the state.
        tensors: Vectors, and single tensors, in the order of the layout.
        views: By unit: its views into the vectors; None for a single tensor.
        units: What the state has: dicts of views, and the single tensors.
        inputs: What a graph takes: all tensors, then all views.
    """

    __slots__ = ("_fresh", "_parts", "_watched", "inputs", "layout", "tensors", "units", "views")

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
        self._watched: _Watched | None = None
        self._fresh = False  # copied for this step: no state has it yet

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
        copied = before is None
        for i, (start, stop, pack) in enumerate(layout.places):
            if pack is None:
                tensors.append(units[i])
                views.append(None)
            elif before is not None and units[i] is before.units[i]:
                tensors += before.tensors[start:stop]
                views.append(before.views[i])
            else:
                tensors += pack.join(units[i])
                made = pack.views(tensors[start:])
                views.append(made)
                units[i] = pack.dict(tensors[start:], made)
                copied = True
        arena = cls(layout, tensors, views, units)
        if before is None:
            arena._fresh = True
        elif not copied:  # only single tensors are others; the same memory must have one arena
            arena._watched = before._watched
            arena._parts = layout.parts(state)
            state.__dict__[_KEY] = arena
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
        cls(layout, tensors, views, units)._belong(state, watch=True)

    def alone(self, state: State) -> Arena:
        """This memory if nobody else holds a tensor of it, else a copy.

        Args:
            state: Of this memory.
        """
        if self._fresh:
            return self
        watched = self._watched
        if watched is not None and watched.by_nobody() and not _dicts_held(state, self.layout):
            return self
        return self._with({i: self.tensors[i].clone() for i in self.layout.vectors})

    def advance(self, new: Mapping[int, Tensor], like: State, watch: bool) -> State:
        """The next state.

        Args:
            new: The tensors that have changed, by their place. What has not is shared; a vector
                that was written over has not.
            like: Where the state's other parts come from.
            watch: Whether `alone` will be asked of it.
        """
        arena = self._with(new)
        after = self.layout.build(like, arena.units)
        if watch and all(map(operator.is_, arena.views, self.views)):
            arena._watched = self._watched
        arena._belong(after, watch)
        return after

    def _belong(self, state: State, watch: bool) -> None:
        self._parts = self.layout.parts(state)
        if watch and self._watched is None:
            self._watched = _Watched(self, state)
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
        return Arena(self.layout, tensors, views, units)

    def _holds(self, state: State) -> bool:
        """Whether the state is still made of this memory."""
        return all(map(operator.is_, self.layout.parts(state), self._parts))


class _Watched:
    """Tensors that a state and its arena hold, and how often they are held if nobody else does."""

    def __init__(self, arena: Arena, state: State) -> None:
        direct = {id(part) for part in arena.layout.parts(state)}
        self._vectors = [arena.tensors[i] for i in sorted(arena.layout.vectors)]
        self._held: list[Any] = []
        self._expected: list[int] = []
        for unit, views in zip(arena.units, arena.views, strict=True):
            if views is not None:
                # The dict: in the arena's units, in the state, here; the arena's parts.
                self._held.append(unit)
                self._expected.append(_ONCE + 2 + (id(unit) in direct))
                # Each view: in the dict, among the arena's views and its inputs, here.
                self._held += views
                self._expected += [_ONCE + 3] * len(views)
        self._users = list(map(storage_users, self._vectors))

    def by_nobody(self) -> bool:
        """Whether nobody else holds one of the tensors, a view of one, or a dict of them."""
        return (
            list(map(sys.getrefcount, self._held)) == self._expected
            and list(map(storage_users, self._vectors)) == self._users
        )


def _dicts_held(state: State, layout: Layout) -> bool:
    """Whether somebody holds one of the dicts that lead to the tensors."""
    dicts, in_parts = [state.slots], 0
    for name in layout.slots:
        before = len(dicts)
        _collect(state.slots[name], dicts)
        in_parts += len(dicts) > before  # of the arena, too
    # Each in one other dict, and in this list.
    return sum(map(sys.getrefcount, dicts)) != (_ONCE + 1) * len(dicts) + in_parts


def _collect(memory: Any, found: list[Any]) -> None:
    if type(memory) is dict:
        values = memory.values()
        if any([type(value) is dict for value in values]):
            found.append(memory)
            for value in values:
                _collect(value, found)


_ONCE = sum(map(sys.getrefcount, [object()]))
"""What ``sys.getrefcount`` says of an object in one list; each further holder adds one."""

_KEY = "_arena"

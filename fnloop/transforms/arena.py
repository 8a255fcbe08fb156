"""The memory of a compiled step's state, and whether somebody else looks at it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fnloop._torch.graph import storage_users
from fnloop.transforms.layout import Layout, Layouts, Unit
from fnloop.values import State


class Arena:
    """A state's tensors as a graph takes them, kept with the state that they make.

    Attributes:
        layout: Of the state.
        tensors: The graph's inputs: vectors, and single tensors.
        units: What the state has in their place: dicts of views, and the single tensors; None where
            there are no views yet.
    """

    __slots__ = ("_parts", "_watched", "layout", "tensors", "units")

    def __init__(
        self,
        layout: Layout,
        tensors: list[Tensor],
        units: list[Unit],
        watched: _Watched | None = None,
    ) -> None:
        self.layout = layout
        self.tensors = tensors
        self.units = units
        self._parts: list[Any] = []
        self._watched = watched

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
        same = before is not None
        for i, (start, stop, pack) in enumerate(layout.places):
            if pack is None:
                tensors.append(units[i])
            elif before is not None and units[i] is before.units[i]:
                tensors += before.tensors[start:stop]
            else:
                tensors += pack.join(units[i])
                units[i] = None
                same = False
        return cls(layout, tensors, units, before._watched if before and same else None)

    def alone(self) -> Arena:
        """This memory if nobody else holds a tensor of it, else a copy."""
        if self._watched is not None:
            if self._watched.by_nobody():
                return self
        elif all(unit is None for unit, place in zip(self.units, self.layout.places) if place.pack):
            return self  # just made, for this step
        places = self.layout.vectors
        tensors = [t.clone() if i in places else t for i, t in enumerate(self.tensors)]
        units = [None if p.pack else u for u, p in zip(self.units, self.layout.places, strict=True)]
        return Arena(self.layout, tensors, units)

    def advance(self, new: Mapping[int, Tensor], like: State, watch: bool) -> State:
        """The next state.

        Args:
            new: The tensors that have changed, by their place. What has not is shared; a vector
                that was written over has not.
            like: Where the state's other parts come from.
            watch: Whether `alone` will be asked about it.
        """
        tensors = self.tensors.copy()
        for i, tensor in new.items():
            tensors[i] = tensor
        units = self.units.copy()
        fresh = 0
        for i, (start, stop, pack) in enumerate(self.layout.places):
            if pack is None:
                units[i] = tensors[start]
            elif units[i] is None or any([j in new for j in range(start, stop)]):
                units[i] = pack.part(tensors[start:stop])
                fresh += 1
        watched = self._watched if watch and not fresh else None
        if watch and fresh == self.layout.packs:
            watched = _Watched(self.layout, tensors, units)
        arena = Arena(self.layout, tensors, units, watched)
        after = self.layout.build(like, units)
        arena._parts = self.layout.parts(after)
        after.__dict__[_KEY] = arena
        return after

    def _holds(self, state: State) -> bool:
        """Whether the state is still made of this memory."""
        return all(map(operator.is_, self.layout.parts(state), self._parts))


class _Watched:
    """Tensors that a state and its arena hold, and how often they are held if nobody else does."""

    def __init__(self, layout: Layout, tensors: Sequence[Tensor], units: Sequence[Unit]) -> None:
        self._vectors = [tensors[i] for i in sorted(layout.vectors)]
        self._held: list[Any] = []
        for place, unit in zip(layout.places, units, strict=True):
            if place.pack is not None and place.pack.groups:
                self._held += [unit, *[unit[name] for name in place.pack.grouped]]
        # Each dict will be held by the state too; the parameters' by the arena's list of parts.
        dicts = sum(place.pack is not None and bool(place.pack.groups) for place in layout.places)
        self._expected = self._holders() + dicts + 1
        self._users = list(map(storage_users, self._vectors))

    def by_nobody(self) -> bool:
        """Whether nobody else holds one of the tensors, a view of one, or a dict of them."""
        return (
            self._holders() <= self._expected
            and list(map(storage_users, self._vectors)) == self._users
        )

    def _holders(self) -> int:
        return sum(map(sys.getrefcount, self._held))


_KEY = "_arena"

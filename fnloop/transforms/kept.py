"""The tensors of a state as a graph takes them, and whether anything else refers to them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping, Set
from typing import Any

from torch import Tensor

from fnloop._torch.references import storage_of
from fnloop.transforms.plan import Plan, Plans, Unit, dense
from fnloop.values.holders import ONCE, Held, Shared, is_held
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


class Kept:
    """A state's tensors in the form in which a graph takes them, cached on the state.

    The cache is valid as long as the state consists of these tensors: see `State.replace`.

    Attributes:
        plan: The state's plan.
        units: The elements of the state: `Tensors`, and single tensors.
        inputs: The graph's inputs: all storages and single tensors, then the parameters by name.
    """

    __slots__ = ("_parts", "_read_only", "_watch", "inputs", "plan", "units")

    def __init__(self, plan: Plan, units: list[Unit], read_only: Set[int]) -> None:
        self.plan = plan
        self.units = units
        self.inputs: list[Tensor] = []
        for unit in units:
            self.inputs += unit.peek_storages() if isinstance(unit, Tensors) else (unit,)
        params: Any = units[plan.params]
        self.inputs += params.peek()
        self._parts: list[Any] = []
        self._watch: _Watch | None = None
        self._read_only = read_only  # single tensors that no step has made: never overwritten

    @classmethod
    def of(cls, state: State, plans: Plans) -> Kept:
        """The tensors of `state`, copied where layout or strides differ from the plan's."""
        kept: Kept | None = state.__dict__.get(_KEY)
        if kept is not None and kept.plan in plans and kept.holds(state):
            return kept
        plan = plans.of(state)
        units: list[Unit] = plan.flatten(state)
        filled = list(map(dense, units))
        same = all(map(operator.is_, filled, units))
        if not same:  # only dense tensors can be overwritten
            state = plan.build(state, filled)
            plan = plans.of(state)
            units = plan.flatten(state)
        read_only: set[int] = set()
        for i, (unit, place) in enumerate(zip(units, plan.places, strict=True)):
            if isinstance(unit, Tensors):
                if unit.layout is not place.layout:
                    units[i] = _moved(unit, place.layout)
                    same = False
            else:
                read_only.add(place.start)
        new = cls(plan, units, read_only)
        if same:
            new._belong(state)
        return new

    @classmethod
    def repack(cls, state: State, plans: Plans) -> None:
        """Convert a new state, which nothing else refers to, to its plan's layouts, in place.

        Old tensors are freed as they are copied, so the memory never holds two states.
        """
        plan = plans.of(state)
        units: list[Unit] = plan.flatten(state)
        for unit, place in zip(units, plan.places, strict=True):
            if isinstance(unit, Tensors) and place.layout is not None:
                unit.repack(place.layout)
                # A stage may have put the same tensors into two places, or tensors of the user.
                unit.seen = True
                unit.owned = all([storage_of(s).resizable() for s in unit.peek_storages()])
        del units

    def holds(self, state: State) -> bool:
        """Whether `state` consists of these tensors."""
        try:
            parts = self.plan.parts(state)
        except KeyError:  # a slot is gone
            return False
        return all(map(operator.is_, parts, self._parts))

    def unshared(self, state: State, written: Set[int]) -> Kept:
        """Copy the tensors that will be overwritten and are referred to elsewhere.

        The copies replace the originals in `state`, too.

        Args:
            state: A state of these tensors, or of other tensors with the same values.
            written: Indices of the inputs that the graph overwrites.
        """
        if state.__dict__.get(_KEY) is not self:  # `of` has just copied it
            self._fill(state)
        if self._watch is None or self._watch.written is not written:
            self._watch = _Watch(self, state, written)
        seen = self._watch.seen(state) | (written & (self._read_only | self.plan.guarded))
        if not seen:
            return self
        kept = self._with_copies(seen)
        kept._fill(state)
        return kept

    def advance(self, new: Mapping[int, Tensor], like: State, stable: bool) -> State:
        """The next state.

        Args:
            new: Changed tensors by input index. All others, also those written in place, are
                shared with `like`.
            like: The state before; everything else comes from it.
            stable: Whether the new tensors have the strides of the old ones. If not, the next
                state needs another plan.
        """
        if not new and like.__dict__.get(_KEY) is self:
            return like.replace()
        kept = self._with(new)
        after = self.plan.build(like, kept.units)
        after.__dict__.pop(_KEY, None)
        if stable:
            kept._belong(after)
        return after

    def _fill(self, state: State) -> None:
        """Put these tensors, which have the same values, into `state`."""
        state.__dict__.update(self.plan.fields(state, self.units))
        self._belong(state)

    def _belong(self, state: State) -> None:
        self._parts = self.plan.parts(state)
        state.__dict__[_KEY] = self

    def _with(self, new: Mapping[int, Tensor]) -> Kept:
        """The same with some tensors replaced by new ones, which it owns."""
        units = list(self.units)
        for i, place in enumerate(self.plan.places):
            changed = [k for k in range(place.start, place.stop) if k in new]
            if not changed:
                continue
            if place.layout is None:
                units[i] = new[place.start]
                continue
            unit: Any = units[i]
            old = unit.peek_storages()
            storages = [new.get(k, old[k - place.start]) for k in range(place.start, place.stop)]
            units[i] = Tensors.of(place.layout, storages)
            units[i].owned = len(changed) == len(storages) or unit.owned  # type: ignore[union-attr]
        return Kept(self.plan, units, self._read_only - new.keys())

    def _with_copies(self, seen: Iterable[int]) -> Kept:
        """The same with some tensors copied; a `Tensors` is copied as a whole."""
        copied = {self.plan.place_of(i) for i in seen}
        units = list(self.units)
        read_only = set(self._read_only)
        for i in copied:
            unit = units[i]
            units[i] = unit.clone()
            if isinstance(unit, Tensors):
                units[i].owned = True  # type: ignore[union-attr]
            read_only.discard(self.plan.places[i].start)
        return Kept(self.plan, units, read_only)


def _moved(unit: Tensors, layout: Any) -> Tensors:
    named = dict(zip(unit.names, unit.peek(), strict=True))
    moved = Tensors.of(layout, layout.join(named))
    # A group of one tensor is that tensor itself, not a copy: it is not owned.
    old = {id(t) for t in (*unit.peek(), *unit.peek_storages())}
    moved.owned = all([id(s) not in old for s in moved.peek_storages()])
    return moved


class _Watch:
    """Reference counts of the tensors to be overwritten, and of the containers around them.

    If a count is higher than the state and its `Kept` account for, somebody else would see the
    tensor change. The tensors in a `Tensors` are counted only if one may have been taken out.

    Attributes:
        written: Indices of the inputs to be overwritten.
    """

    def __init__(self, kept: Kept, state: State, written: Set[int]) -> None:
        self.written = written
        self._inputs = kept.inputs
        plan = kept.plan
        parts = {id(part) for part in plan.parts(state)}
        singles: list[Tensor] = []
        self._places: list[int] = []
        self._named: list[tuple[Tensors, Set[int]]] = []
        for unit, place in zip(kept.units, plan.places, strict=True):
            own = written & set(range(place.start, place.stop)) - plan.guarded
            if isinstance(unit, Tensors):
                if own:
                    self._named.append((unit, own))
            elif own:
                singles.append(unit)
                self._places.append(place.start)
        # References to a single tensor: from the state or a dict in it, the kept units, the kept
        # inputs, perhaps the parts.
        self._singles = Held(singles, [3 + (id(t) in parts) for t in singles])
        self._single_users = Shared(singles)
        # References to a `Tensors`: from the state or a dict in it, the kept units, the list here,
        # perhaps the parts. To a dict: from the state or another dict, perhaps the parts.
        named = [unit for unit, _ in self._named]
        targets = {id(t) for t in [*singles, *named]}
        dicts: list[dict[str, Any]] = []
        for part in plan.parts(state):
            _collect(part, targets, dicts)
        self._others = Held(
            [*named, *dicts],
            [3 + (id(t) in parts) for t in named] + [1 + (id(d) in parts) for d in dicts],
        )

    def seen(self, state: State) -> Set[int]:
        """Indices of the inputs that somebody else refers to."""
        if not self._others.by_nobody() or list(map(sys.getrefcount, [state.slots])) != [ONCE + 1]:
            return self.written
        singles = self._singles.by_nobody() and self._single_users.by_nobody()
        if singles and all([unit.owned and not unit.seen for unit, _ in self._named]):
            return _NOTHING
        held = map(operator.or_, self._singles.held(), self._single_users.held())
        found = {place for place, seen in zip(self._places, held, strict=True) if seen}
        for unit, own in self._named:
            if not unit.owned or (unit.seen and is_held(unit, self._inputs)):
                found |= own
            else:
                unit.seen = False
        return found


def _collect(node: Any, targets: Set[int], found: list[dict[str, Any]]) -> bool:
    """Append the dicts on the way to targets in `node` to `found`; whether there is a target."""
    if type(node) is not dict:
        return id(node) in targets
    leads = [_collect(value, targets, found) for value in node.values()]
    if any(leads):
        found.append(node)
    return any(leads)


_NOTHING: frozenset[int] = frozenset()

_KEY = "_kept"

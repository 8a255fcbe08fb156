"""How a state becomes the inputs of a graph, and the graph's outputs a state."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import optree
import torch
from torch import Tensor

from fnloop.stages.base import Stage
from fnloop.stages.lift import Lifted
from fnloop.transforms.kinds import kind_of
from fnloop.values.packed import Group, Vectors, vectors_of
from fnloop.values.state import State

Cut: TypeAlias = tuple[torch.Size, list[int], int]
"""Shape, strides and offset of a view."""

Unit: TypeAlias = Any
"""A tensor of the state, or a dict of tensors that is handled as one."""


class Pack:
    """A dict of tensors, some of which lie in vectors.

    Attributes:
        names: All of them, in their order.
        groups: Of those that lie in vectors.
        loose: The names of the others.
        grouped: The names of those in groups, group after group.
        cuts: How each of those is cut out of its vector: shape, strides, offset; by group.
    """

    def __init__(self, names: Iterable[str], groups: Sequence[Group]) -> None:
        self.names = tuple(names)
        self.groups = tuple(group for group in groups if group.names[0] in self.names)
        self.grouped = [name for group in self.groups for name in group.names]
        self.loose = [name for name in self.names if name not in set(self.grouped)]
        self.cuts: list[list[Cut]] = []
        for group in self.groups:
            offset, views = 0, []
            for shape in group.shapes:
                views.append((shape, _strides(shape), offset))
                offset += shape.numel()
            self.cuts.append(views)
        self._in_order = [*self.grouped, *self.loose] == list(self.names)

    def __len__(self) -> int:
        return len(self.groups) + len(self.loose)

    def join(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """A vector for each group, then the others as they are.

        A vector that is there already is taken; else it is a copy.
        """
        there = vectors_of(tensors)
        vectors = [there[g] if g in there else g.join(tensors) for g in self.groups]
        return [*vectors, *[tensors[name] for name in self.loose]]

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Views into the vectors, in the order of `grouped`."""
        return [
            vector.as_strided(*view)
            for vector, views in zip(tensors, self.cuts, strict=False)
            for view in views
        ]

    def dict(self, tensors: Sequence[Tensor], views: Sequence[Tensor]) -> dict[str, Tensor]:
        """The dict again."""
        parts = dict(zip(self.grouped, views, strict=True))
        if not self.loose and self._in_order:
            return parts
        parts.update(zip(self.loose, tensors[len(self.groups) :], strict=True))
        return {name: parts[name] for name in self.names}

    def noted(
        self, vectors: Vectors, tensors: Sequence[Tensor], views: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The dict for a step that is recorded, with its vectors noted."""
        named = dict(zip(self.groups, tensors, strict=False))
        return vectors.note(self.dict(tensors, views), named)


class Span(NamedTuple):
    """Where a unit's tensors are among the graph's inputs.

    Attributes:
        start, stop: Of the range.
        pack: None for a single tensor.
    """

    start: int
    stop: int
    pack: Pack | None


class Layout:
    """The order of a state's tensors in a graph.

    Parameters, and whatever has their names and shapes (moments, averages), are joined into
    vectors; everything else is an input of its own.

    Attributes:
        slots: The slots that the step reads and writes; others pass by.
        places: Of each unit of the state.
        vectors: Which of the graph's inputs are vectors.
        writable: Vectors, and the other tensors that can be written over: nothing but dicts leads
            to them.
        unit_of: The unit that each of the graph's inputs belongs to.
    """

    def __init__(self, state: State, slots: Iterable[str]) -> None:
        self.slots = tuple(slots)
        tree: Any = self._tree(state)
        trainable = {name: state.params[name] for name in state.skeleton.trainable}
        dicts = [state.params, *_dicts_like(trainable, tree[-1])]
        groups = _groups(trainable, dicts)
        packable = {id(d) for d in dicts}
        units, self._spec = optree.tree_flatten(tree, is_leaf=lambda node: id(node) in packable)
        plain = [all([e.type is dict for e in way[1:]]) for way in self._spec.accessors()]
        self.places: list[Span] = []
        self.vectors: set[int] = set()
        self.unit_of: list[int] = []
        writable: set[int] = set()
        start = 0
        for unit, only_dicts in zip(units, plain, strict=True):
            pack = Pack(unit, groups) if isinstance(unit, dict) else None
            stop = start + (1 if pack is None else len(pack))
            self.unit_of += [len(self.places)] * (stop - start)
            self.places.append(Span(start, stop, pack))
            singles: list[Any] = [unit]
            if pack is not None:
                singles = [unit[name] for name in pack.loose]
                self.vectors.update(range(start, start + len(pack.groups)))
            for i, tensor in enumerate(singles, stop - len(singles)):
                if only_dicts and _can_be_copied(tensor):
                    writable.add(i)
            start = stop
        self.writable = frozenset(writable | self.vectors)

    def parts(self, state: State) -> list[Any]:
        """What the state is made of, as far as the step is concerned, without flattening it."""
        slots = state.slots
        return [
            state.step, state.params, state.buffers, state.key, *[slots[n] for n in self.slots]
        ]  # fmt: skip

    def flatten(self, state: State) -> list[Unit]:
        """The state's units."""
        return self._spec.flatten_up_to(self._tree(state))

    def build(self, like: State, units: Sequence[Unit]) -> State:
        """A state of these units; slots that the step does not know are those of `like`."""
        step, params, buffers, key, slots = self._spec.unflatten(units)
        new = object.__new__(State)
        own = new.__dict__
        own.update(like.__dict__)
        own["step"], own["params"], own["buffers"], own["key"] = step, params, buffers, key
        own["slots"] = {**like.slots, **slots}
        return new

    def join(self, units: Sequence[Unit]) -> list[Tensor]:
        """Units as graph inputs: vectors are made, or taken where there are some."""
        found: list[Tensor] = []
        for unit, place in zip(units, self.places, strict=True):
            found += [unit] if place.pack is None else place.pack.join(unit)
        return found

    def noted(
        self, vectors: Vectors, tensors: Sequence[Tensor], views: Iterable[Tensor]
    ) -> list[Unit]:
        """Graph inputs as units for a step that is recorded."""
        rest = iter(views)
        units: list[Unit] = []
        for start, stop, pack in self.places:
            if pack is None:
                units.append(tensors[start])
            else:
                own = list(itertools.islice(rest, len(pack.grouped)))
                units.append(pack.noted(vectors, tensors[start:stop], own))
        return units

    def parts_of(self, vector: int) -> list[tuple[int, Any]]:
        """The views into a vector, each by its place among all views, and how it is cut."""
        first = 0
        for start, _, pack in self.places:
            if pack is None:
                continue
            for i, views in enumerate(pack.cuts):
                if start + i == vector:
                    return list(enumerate(views, first))
                first += len(views)
        return []

    def _tree(self, state: State) -> Any:
        slots = {name: state.slots[name] for name in self.slots}
        return (state.step, state.params, state.buffers, state.key, slots)


class Layouts:
    """The layouts of a step's states: one for all of the same structure, shapes and dtypes."""

    def __init__(self, step: Stage) -> None:
        parts = list(step.stages())
        self._own = {part.slot for part in parts if part.slot is not None}
        self._all = any(isinstance(part, Lifted) for part in parts)  # which may read any slot
        self._layouts: dict[Any, list[tuple[Any, Layout]]] = {}
        self._made: set[Layout] = set()

    def of(self, state: State) -> Layout:
        """The layout of `state`."""
        slots = [name for name in state.slots if self._all or name in self._own]
        own = {name: state.slots[name] for name in slots}
        tree: Any = (state.step, state.params, state.buffers, state.key, own)
        leaves, structure = optree.tree_flatten(tree)
        key = (state.skeleton, structure, tuple(map(kind_of, leaves)))
        for skeleton, layout in self._layouts.setdefault(key, []):
            if state.skeleton.behaves_like(skeleton):
                return layout
        layout = Layout(state, slots)
        self._layouts[key].append((state.skeleton, layout))
        self._made.add(layout)
        return layout

    def __contains__(self, layout: Layout) -> bool:
        return layout in self._made


def _dicts_like(params: Mapping[str, Tensor], tree: Any) -> list[dict[str, Tensor]]:
    """Dicts in `tree` whose tensors have names and shapes of parameters."""
    if not isinstance(tree, dict):
        return []
    if tree and all(
        isinstance(t, Tensor) and name in params and t.shape == params[name].shape
        for name, t in tree.items()
    ):
        return [tree]
    return [found for value in tree.values() for found in _dicts_like(params, value)]


def _can_be_copied(tensor: Tensor) -> bool:
    """Whether there is memory to write to, and a clone of it has the same strides."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _joins(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and tensor.numel() > 0
    )


def _groups(params: Mapping[str, Tensor], dicts: Sequence[Mapping[str, Tensor]]) -> list[Group]:
    """Parameters that stand in the same dicts, and differ in their first dimension only."""
    members: dict[Any, list[str]] = {}
    for name, p in params.items():
        if all(_joins(d[name]) for d in dicts if name in d):
            where = tuple([(i, d[name].dtype) for i, d in enumerate(dicts) if name in d])
            members.setdefault((where, p.device, p.shape[1:]), []).append(name)
    groups: list[Group] = []
    for names in members.values():
        # Those whose size is no multiple of a cache line go last, so that the others begin at one.
        names.sort(key=lambda name: params[name].nbytes % 64 != 0)
        groups.append(Group(tuple(names), tuple([params[name].shape for name in names])))
    return groups


def _strides(shape: torch.Size) -> list[int]:
    """Of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]

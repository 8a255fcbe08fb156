"""How a state becomes the inputs of a graph, and the graph's outputs a state."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import optree
import torch
from torch import Tensor

from fnloop.stages.base import Stage
from fnloop.transforms.kinds import kind_of
from fnloop.values.layouts import Group, Layout, Packed, Separate
from fnloop.values.state import State
from fnloop.values.tensors import Tensors

Unit: TypeAlias = "Tensors | Tensor"
"""An element of a state: named tensors, or a single tensor."""


class Span(NamedTuple):
    """Where a unit's storages are among the graph's inputs.

    Attributes:
        start, stop: The range of indices.
        layout: The unit's layout there; None for a single tensor.
    """

    start: int
    stop: int
    layout: Layout | None


class Plan:
    """The order of a state's tensors in a graph, and their layouts.

    Parameters, and whatever has their names and shapes (moments, averages), are packed; everything
    else is an input of its own. A population is not packed: Inductor cannot write a batched matrix
    product into part of a storage.

    Attributes:
        slots: The slots that the step reads and writes; others pass through unchanged.
        places: The span of each unit of the state.
        writable: Indices of the inputs that can be overwritten.
        guarded: Those of them inside a container that is no dict: references to such a container
            are not counted.
        params: Index of the unit that holds the parameters.
    """

    def __init__(self, state: State, slots: Iterable[str]) -> None:
        self.slots = tuple(slots)
        units, self._spec = optree.tree_flatten(self._tree(state), is_leaf=_is_named)
        plain = [all([e.type is dict for e in way[1:]]) for way in self._spec.accessors()]
        self.params = next(i for i, unit in enumerate(units) if unit is state.params)
        alike = [] if state.step.ndim else _alike(state, units)
        groups = _groups(state, alike)
        self.places: list[Span] = []
        writable: set[int] = set()
        guarded: set[int] = set()
        start = 0
        for unit, only_dicts in zip(units, plain, strict=True):
            if isinstance(unit, Tensors):
                layout = _packed(unit, groups if any([unit is each for each in alike]) else [])
                shapes = _storages_of(unit, layout)
            else:
                layout, shapes = None, [unit]
            self.places.append(Span(start, start + len(shapes), layout))
            for i, tensor in enumerate(shapes, start):
                if _can_be_written(tensor):
                    writable.add(i)
                    if not only_dicts:
                        guarded.add(i)
            start += len(shapes)
        self.writable = frozenset(writable)
        self.guarded = frozenset(guarded)
        self.size = start

    def parts(self, state: State) -> list[Any]:
        """The parts of the state that the step uses, not flattened."""
        slots = state.slots
        return [
            state.step,
            state.calls,
            state.params,
            state.buffers,
            state.key,
            *[slots[name] for name in self.slots],
        ]

    def flatten(self, state: State) -> list[Any]:
        """The state's units."""
        return self._spec.flatten_up_to(self._tree(state))

    def fields(self, like: State, units: Sequence[Unit]) -> dict[str, Any]:
        """The fields of a state of these units; slots that the step does not use are `like`'s."""
        parts: Any = self._spec.unflatten(units)
        step, calls, params, buffers, key, slots = parts
        return {
            "step": step,
            "calls": calls,
            "params": params,
            "buffers": buffers,
            "key": key,
            "slots": {**like.slots, **slots},
        }

    def build(self, like: State, units: Sequence[Unit]) -> State:
        """A state of these units; everything else is that of `like`."""
        new = object.__new__(State)
        new.__dict__.update(like.__dict__)
        new.__dict__.update(self.fields(like, units))
        return new

    def place_of(self, i: int) -> int:
        """Index of the unit that the input `i` belongs to."""
        return next(n for n, place in enumerate(self.places) if place.start <= i < place.stop)

    def _tree(self, state: State) -> Any:
        slots = {name: state.slots[name] for name in self.slots}
        return (state.step, state.calls, state.params, state.buffers, state.key, slots)


class Plans:
    """The plans of a step's states; states of equal structure, shapes and dtypes share one."""

    def __init__(self, step: Stage) -> None:
        stages = list(step.stages())
        self._own = {stage.slot for stage in stages if stage.slot is not None}
        self._all = any(stage.reads_any_slot for stage in stages)
        self._plans: dict[Any, list[tuple[Any, Plan]]] = {}
        self._made: set[Plan] = set()

    def of(self, state: State) -> Plan:
        """The plan of `state`."""
        slots = [name for name in state.slots if self._all or name in self._own]
        own = {name: state.slots[name] for name in slots}
        tree: Any = (state.step, state.calls, state.params, state.buffers, state.key, own)
        units, structure = optree.tree_flatten(tree, is_leaf=_is_named)
        key = (state.skeleton, structure, tuple(map(_kind, units)))
        for skeleton, plan in self._plans.setdefault(key, []):
            if state.skeleton.behaves_like(skeleton):
                return plan
        plan = Plan(state, slots)
        self._plans[key].append((state.skeleton, plan))
        self._made.add(plan)
        return plan

    def __contains__(self, plan: Plan) -> bool:
        return plan in self._made


def packed(state: State) -> State:
    """The same state, packed as by a compiled step that uses all its slots.

    >>> from fnloop.values.start import start
    >>> packed(start(torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)]))).params.layout
    Packed(6 tensors in 2)
    """
    plan = Plan(state, state.slots)
    units = [
        Tensors.of(place.layout, place.layout.join(dict(unit.items()))) if place.layout else unit
        for unit, place in zip(plan.flatten(state), plan.places, strict=True)
    ]
    return plan.build(state, units)


def _is_named(node: Any) -> bool:
    return isinstance(node, Tensors)


def _kind(unit: Unit) -> Any:
    """What a plan depends on; by name, so that a state has the same plan packed or not."""
    if isinstance(unit, Tensors):
        return unit.names, tuple(map(_named_kind, unit.peek()))
    return kind_of(unit)


def _named_kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _packed(unit: Tensors, groups: Sequence[Group]) -> Layout:
    """The layout of a unit: its groups, and each other tensor by itself."""
    if unit.layout.mesh is not None:  # its storages are pieces
        return unit.layout
    own = [group for group in groups if unit.keys() >= set(group.names)]
    if not own:
        return Separate(unit.names, unit.layout.pairs)
    grouped = {name for group in own for name in group.names}
    lone = [Group((name,), (None,), 0) for name in unit if name not in grouped]
    return Packed([*own, *lone], unit.names, unit.layout.pairs)


def _storages_of(unit: Tensors, layout: Layout) -> Sequence[Tensor]:
    """Tensors like the storages of `unit` in `layout`, without values."""
    if unit.layout is layout:
        return unit.peek_storages()
    named = zip(unit.names, unit.peek(), strict=True)
    return layout.join({name: torch.empty_like(t, device="meta") for name, t in named})


def dense(unit: Unit) -> Unit:
    """`unit`, with contiguous copies of tensors whose elements overlap or leave gaps in memory."""
    if not isinstance(unit, Tensors):
        return _dense(unit)
    storages = list(map(_dense, unit.peek_storages()))
    if all(map(operator.is_, storages, unit.peek_storages())):
        return unit
    return Tensors.of(unit.layout, storages)


def _dense(tensor: Tensor) -> Tensor:
    odd = tensor.layout is torch.strided and tensor.numel() and not tensor.is_contiguous()
    if not odd or _can_be_written(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _can_be_written(tensor: Tensor) -> bool:
    """Whether it has memory to write to, and a copy would have the same strides."""
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


def _alike(state: State, units: Sequence[Any]) -> list[Tensors]:
    """The parameters, and each `Tensors` with the names and shapes of trained parameters."""
    trained, found = set(state.skeleton.trainable), list[Tensors]()
    if state.params.layout.mesh is not None:
        return found
    for unit in units:
        if unit is state.params:
            found.append(unit)
        elif isinstance(unit, Tensors) and unit.keys() <= trained:
            named = zip(unit.names, unit.peek(), strict=True)
            if all([tensor.shape == state.params[name].shape for name, tensor in named]):
                found.append(unit)
    return found


def _groups(state: State, alike: Sequence[Tensors]) -> list[Group]:
    """Groups of trained parameters of the same units that differ in their first dimension only."""
    trained = {name: state.params[name] for name in state.skeleton.trainable} if alike else {}
    members: dict[Any, list[str]] = {}
    for name, p in trained.items():
        if all([_joins(unit[name]) for unit in alike if name in unit]):
            where = tuple([(i, unit[name].dtype) for i, unit in enumerate(alike) if name in unit])
            members.setdefault((where, p.device, p.shape[1:]), []).append(name)
    groups: list[Group] = []
    for names in members.values():
        if len(names) == 1:
            continue
        # Sizes that are no multiple of a cache line go last, so that the others stay aligned.
        names.sort(key=lambda name: trained[name].nbytes % 64 != 0)
        rows = tuple([trained[n].shape[0] if trained[n].ndim else None for n in names])
        groups.append(Group(tuple(names), rows, max(0, trained[names[0]].ndim - 1)))
    return groups

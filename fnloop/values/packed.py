"""Many small tensors as parts of a few long ones, inside a compiled step.

What treats every value alike (most optimizers, averages, the search for what is not finite) can
work on the long ones, here called vectors: a few loops instead of thousands. While a step is
recorded for `fl.compile`, the recording knows which dicts of tensors are parts of vectors;
everywhere else no dict is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop._torch.tracing import compilation

Tensors = Mapping[str, Tensor]


class Group(NamedTuple):
    """Tensors that lie one after another in one long one, joined along their first dimension.

    They agree in all other dimensions. (Were they flattened first, a compiler would make each
    gradient apart and copy it; so it writes a matrix product where it belongs.)

    Attributes:
        names: In the order of the vector.
        shapes: Of each.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    def join(self, tensors: Tensors) -> Tensor:
        """The vector: a copy."""
        parts = [tensors[name] for name in self.names]
        return torch.cat([part if part.ndim else part.reshape(1) for part in parts])

    def part(self, vector: Tensor) -> dict[str, Tensor]:
        """Its tensors: views."""
        rows = [shape[0] if shape else 1 for shape in self.shapes]
        parts = zip(self.names, self.shapes, vector.split(rows), strict=True)
        return {name: part if shape else part.view(()) for name, shape, part in parts}


class Vectors:
    """Which dicts are parts of which vectors, in one recording."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, list[Tensor], dict[Group, Tensor]]] = {}

    def note(
        self, tensors: dict[str, Tensor], vectors: Mapping[Group, Tensor]
    ) -> dict[str, Tensor]:
        """Remember that `tensors` are parts of `vectors`."""
        self._known[id(tensors)] = (tensors, list(tensors.values()), dict(vectors))
        return tensors

    def of(self, tensors: Tensors) -> dict[Group, Tensor]:
        """The vectors of a dict, unless somebody has changed it since."""
        known, values, vectors = self._known.get(id(tensors), (None, [], {}))
        same = known is tensors and len(values) == len(tensors)
        if same and all([a is b for a, b in zip(values, tensors.values(), strict=True)]):
            return vectors
        return {}


def vectors_of(tensors: Tensors) -> dict[Group, Tensor]:
    """The vectors that `tensors` are parts of, by group; none outside of a recording."""
    recording = compilation()
    return {} if recording is None else recording.vectors.of(tensors)


def groups_of(tensors: Tensors) -> tuple[Group, ...]:
    """The groups of a dict that is packed; none of any other."""
    return tuple(vectors_of(tensors))


def pick(tensors: Tensors, names: Iterable[str]) -> dict[str, Tensor]:
    """Those of `names`, in that order; vectors whose parts are all among them stay."""
    picked = {name: tensors[name] for name in names}
    vectors = vectors_of(tensors)
    return _noted(picked, {g: v for g, v in vectors.items() if set(g.names) <= picked.keys()})


def together(*parts: Tensors) -> dict[str, Tensor]:
    """One dict of several, later ones winning, in the order of first mention; vectors stay."""
    merged = {name: t for part in parts for name, t in part.items()}
    vectors = {
        group: vector
        for part in parts
        for group, vector in vectors_of(part).items()
        if all([merged[name] is part[name] for name in group.names])
    }
    return _noted(merged, vectors)


def joined(tensors: Tensors, groups: Iterable[Group]) -> dict[str, Tensor]:
    """One entry a group, under the name of its first tensor, and the rest as they are.

    >>> group = Group(("a", "b"), (torch.Size([2]), torch.Size([1])))
    >>> joined({"a": torch.zeros(2), "b": torch.ones(1), "c": torch.ones(1)}, [group])
    {'a': tensor([0., 0., 1.]), 'c': tensor([1.])}
    """
    vectors = vectors_of(tensors)
    grouped: set[str] = set()
    units: dict[str, Tensor] = {}
    for group in groups:
        units[group.names[0]] = vectors[group] if group in vectors else group.join(tensors)
        grouped.update(group.names)
    return {**units, **{name: t for name, t in tensors.items() if name not in grouped}}


def parted(units: Tensors, groups: Iterable[Group], names: Iterable[str]) -> dict[str, Tensor]:
    """What `joined` made, taken apart again; `names` gives the order."""
    vectors = {group: units[group.names[0]] for group in groups}
    parts = {n: t for group, vector in vectors.items() for n, t in group.part(vector).items()}
    return _noted({n: parts[n] if n in parts else units[n] for n in names}, vectors)


def joined_memory(memory: Any, groups: tuple[Group, ...]) -> Any:
    """`joined` for every packed dict in nested dicts."""
    if not isinstance(memory, dict):
        return memory
    if vectors_of(memory):
        return joined(memory, groups)
    return {key: joined_memory(value, groups) for key, value in memory.items()}


def parted_memory(units: Any, like: Any, groups: tuple[Group, ...]) -> Any:
    """`parted` wherever `like` has a packed dict."""
    if not isinstance(units, dict) or not isinstance(like, dict):
        return units
    if vectors_of(like):
        return parted(units, groups, like)
    return {
        key: parted_memory(value, like[key], groups) if key in like else value
        for key, value in units.items()
    }


def _noted(tensors: dict[str, Tensor], vectors: Mapping[Group, Tensor]) -> dict[str, Tensor]:
    recording = compilation()
    if recording is None or not vectors:
        return tensors
    return recording.vectors.note(tensors, vectors)

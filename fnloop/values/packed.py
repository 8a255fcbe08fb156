"""Many small tensors as parts of a few long ones, inside a compiled step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Group(NamedTuple):
    """Tensors that lie one after another in one long vector.

    Attributes:
        names: In the order of the vector.
        shapes: Of each.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    def join(self, tensors: Tensors) -> Tensor:
        """The vector: a copy."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def part(self, vector: Tensor) -> dict[str, Tensor]:
        """Its tensors: views."""
        sizes = [shape.numel() for shape in self.shapes]
        parts = zip(self.names, self.shapes, vector.split(sizes), strict=True)
        return {name: part.view(shape) for name, shape, part in parts}


class Packed(dict[str, Tensor]):
    """Tensors by name, some of which are parts of vectors.

    What treats every value alike (most optimizers, averages, the search for what is not finite)
    works on the vectors: one loop instead of thousands. Only a compiled step sees this class, while
    it is traced; a state outside has plain dicts.

    Attributes:
        vectors: By group.
    """

    vectors: dict[Group, Tensor]

    @classmethod
    def of(cls, tensors: Tensors, vectors: Mapping[Group, Tensor]) -> Packed:
        """`tensors` (views into `vectors`, or on their own), with the vectors noted."""
        self = cls(tensors)
        self.vectors = dict(vectors)
        return self


def groups_of(tensors: Tensors) -> tuple[Group, ...]:
    """The groups of a `Packed`; none for a plain dict."""
    return tuple(tensors.vectors) if isinstance(tensors, Packed) else ()


def pick(tensors: Tensors, names: Iterable[str]) -> dict[str, Tensor]:
    """Those of `names`, in that order; vectors whose parts are all among them stay."""
    picked = {name: tensors[name] for name in names}
    if not isinstance(tensors, Packed):
        return picked
    inside = {g: v for g, v in tensors.vectors.items() if all(name in picked for name in g.names)}
    return Packed.of(picked, inside)


def together(*parts: Tensors) -> dict[str, Tensor]:
    """One dict of several, later ones winning, in the order of first mention; vectors stay."""
    merged = {name: t for part in parts for name, t in part.items()}
    vectors = {
        group: vector
        for part in parts
        if isinstance(part, Packed)
        for group, vector in part.vectors.items()
        if all(merged[name] is part[name] for name in group.names)
    }
    return Packed.of(merged, vectors) if vectors else merged


def joined(tensors: Tensors, groups: Iterable[Group]) -> dict[str, Tensor]:
    """One entry a group, under the name of its first tensor, and the rest as they are.

    >>> group = Group(("a", "b"), (torch.Size([2]), torch.Size([1, 1])))
    >>> joined({"a": torch.zeros(2), "b": torch.ones(1, 1)}, [group])
    {'a': tensor([0., 0., 1.])}
    """
    vectors = tensors.vectors if isinstance(tensors, Packed) else {}
    grouped: set[str] = set()
    units: dict[str, Tensor] = {}
    for group in groups:
        units[group.names[0]] = vectors[group] if group in vectors else group.join(tensors)
        grouped.update(group.names)
    return {**units, **{name: t for name, t in tensors.items() if name not in grouped}}


def parted(
    units: Tensors, groups: tuple[Group, ...], names: Iterable[str]
) -> dict[str, Tensor]:
    """What `joined` made, taken apart again; `names` gives the order."""
    if not groups:
        return {name: units[name] for name in names}
    vectors = {group: units[group.names[0]] for group in groups}
    parts = {n: t for group, vector in vectors.items() for n, t in group.part(vector).items()}
    return Packed.of({n: parts[n] if n in parts else units[n] for n in names}, vectors)


def joined_memory(memory: Any, groups: tuple[Group, ...]) -> Any:
    """`joined` for every `Packed` in nested dicts."""
    if isinstance(memory, Packed):
        return joined(memory, groups)
    if isinstance(memory, dict):
        return {key: joined_memory(value, groups) for key, value in memory.items()}
    return memory


def parted_memory(units: Any, like: Any, groups: tuple[Group, ...]) -> Any:
    """`parted` wherever `like` has a `Packed`."""
    if isinstance(like, Packed):
        return parted(units, groups, like)
    if isinstance(like, dict):
        return {
            key: parted_memory(value, like[key], groups) if key in like else value
            for key, value in units.items()
        }
    return units

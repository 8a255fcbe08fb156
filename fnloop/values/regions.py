"""Regions: which values of a tensor a rank has, or a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from torch import Tensor

Box: TypeAlias = tuple[range, ...]
"""The indices along each dimension."""


class Tile(NamedTuple):
    """A box of a region whose values are one after another there.

    Attributes:
        box: Its indices.
        at: The place of its first value in the region.
    """

    box: Box
    at: int

    def view(self, flat: Tensor, box: Box) -> Tensor:
        """A box inside of this one, in the values of the region."""
        values = flat[self.at : self.at + volume(self.box)].view(sizes(self.box))
        pairs = zip(self.box, box, strict=True)
        return values[tuple([slice(r.start - own.start, r.stop - own.start) for own, r in pairs])]


class Region(NamedTuple):
    """Some values of a tensor: a run of those in a box, row-major.

    Attributes:
        box: The box.
        run: Which of its values, by their number in it.

    >>> right = Region((range(2), range(2, 4)), range(4))
    >>> right.shape, right._replace(run=range(1, 4)).shape
    ((2, 2), (3,))
    """

    box: Box
    run: range

    @classmethod
    def all(cls, shape: tuple[int, ...]) -> Region:
        """All values of a tensor."""
        return cls(tuple(map(range, shape)), range(math.prod(shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a tensor with these values: the box's if they are all in it, else flat."""
        return sizes(self.box) if len(self.run) == volume(self.box) else (len(self.run),)

    def tiles(self) -> Iterator[Tile]:
        """The boxes that it consists of, in the order of its values.

        >>> for tile in Region((range(3), range(4)), range(2, 9)).tiles():
        ...     print(*tile)
        (range(0, 1), range(2, 4)) 0
        (range(1, 2), range(0, 4)) 2
        (range(2, 3), range(0, 1)) 6
        """
        if not self.run:
            return
        if len(self.run) == volume(self.box):
            yield Tile(self.box, 0)
            return
        rows, rest = self.box[0], self.box[1:]
        size, at = volume(rest), 0
        while at < len(self.run):
            row, skipped = divmod(self.run.start + at, size)
            left = len(self.run) - at
            if skipped or left < size:  # a row that is not there as a whole
                part = Region(rest, range(skipped, min(size, skipped + left)))
                yield from [Tile((rows[row : row + 1], *t.box), at + t.at) for t in part.tiles()]
                at += len(part.run)
            else:
                whole = left // size
                yield Tile((rows[row : row + whole], *rest), at)
                at += whole * size


class Common(NamedTuple):
    """A box of values that two regions have."""

    box: Box
    here: Tile
    there: Tile


def common(here: Region, there: Region) -> list[Common]:
    """What two regions of a tensor have in common, as boxes.

    >>> below = Region((range(2), range(3)), range(3, 6))
    >>> right = Region((range(2), range(1, 3)), range(4))
    >>> [each.box for each in common(below, right)]
    [(range(1, 2), range(1, 3))]
    """
    if here.box == there.box:  # then their runs are enough
        flat = (range(volume(here.box)),)
        here, there = Region(flat, here.run), Region(flat, there.run)
    if not all(_both(here.box, there.box)):
        return []
    pairs = [(a, b, _both(a.box, b.box)) for a in here.tiles() for b in there.tiles()]
    return [Common(both, a, b) for a, b, both in pairs if all(both)]


def copy(source: Tensor, target: Tensor, shared: list[Common]) -> int:
    """Copy what the region of `source` has in common with that of `target`; how many values."""
    for box, here, there in shared:
        there.view(target, box).copy_(here.view(source, box))
    return sum([volume(box) for box, _, _ in shared])


def sizes(box: Box) -> tuple[int, ...]:
    """The shape of a tensor with these indices."""
    return tuple(map(len, box))


def volume(box: Box) -> int:
    """How many values are in a box."""
    return math.prod(map(len, box))


def _both(one: Box, other: Box) -> Box:
    pairs = zip(one, other, strict=True)
    return tuple([range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs])

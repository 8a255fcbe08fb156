"""Which values of a tensor a rank has, or a file."""

from __future__ import annotations

import math
import random

import torch

from fnloop.values.regions import Region, common, copy, volume


def some(chance):
    """A shape, of which sizes may be 0 or missing."""
    return tuple(chance.choices(range(5), (1, 5, 5, 5, 5), k=chance.randint(0, 4)))


def region_in(shape, chance):
    """Any run of any box."""
    box = tuple([_between(0, size, chance) for size in shape])
    return Region(box, _between(0, volume(box), chance))


def _between(first, last, chance):
    return range(*sorted([chance.randint(first, last), chance.randint(first, last)]))


def numbers(shape):
    """A tensor of which each value is another."""
    return torch.arange(math.prod(shape)).reshape(shape)


def values(region, tensor):
    """What a region has of a tensor, flat, by its definition."""
    slices = tuple([slice(indices.start, indices.stop) for indices in region.box])
    return tensor[slices].reshape(-1)[region.run.start : region.run.stop]


def test_tiles_are_a_regions_values_in_order():
    chance, tiles = random.Random(0), 0
    for _ in range(3000):
        shape = some(chance)
        region, tensor = region_in(shape, chance), numbers(shape)
        found, end = values(region, tensor), 0
        whole = len(found) == volume(region.box)
        assert region.shape == (tuple(map(len, region.box)) if whole else (len(found),))
        for tile in region.tiles():
            assert tile.at == end
            end += volume(tile.box)
            own = values(Region(tile.box, range(volume(tile.box))), tensor)
            assert own.numel() and own.equal(found[tile.at : end])
            assert tile.view(found, tile.box).reshape(-1).equal(own)
            tiles += 1
        assert end == len(found) == len(region.run)
    assert tiles > 500


def test_what_two_regions_have_in_common_is_copied_and_nothing_else():
    chance, copied = random.Random(0), 0
    for _ in range(3000):
        shape = some(chance)
        here, there, tensor = region_in(shape, chance), region_in(shape, chance), numbers(shape)
        source, target = values(here, tensor), torch.full((len(there.run),), -1)
        expected = values(there, tensor)
        both = torch.isin(expected, source)
        count = copy(source, target, common(here, there))
        assert count == int(both.sum())
        assert target.equal(torch.where(both, expected, -1))
        copied += bool(count)
    assert copied > 100


def test_many_pieces_of_one_tensor_are_compared_without_tiles():
    region = Region.all((3, 5))
    first, last = region._replace(run=range(4)), region._replace(run=range(11, 15))
    assert common(first, last) == []
    ((box, _, _),) = common(region, last)
    assert box == (range(11, 15),)

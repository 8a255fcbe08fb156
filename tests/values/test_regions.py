"""Which values of a tensor a rank has, or a file."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fnloop.values.regions import Region, common, copy, volume


@st.composite
def regions(draw, shape):
    """Any run of any box."""
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = tuple([range(*pair) for pair in ends])
    runs = st.tuples(st.integers(0, volume(box)), st.integers(0, volume(box)))
    return Region(box, range(*sorted(draw(runs))))


def numbers(shape):
    """A tensor of which each value is another."""
    return torch.arange(math.prod(shape)).reshape(shape)


def values(region, tensor):
    """What a region has of a tensor, flat, by its definition."""
    slices = tuple([slice(indices.start, indices.stop) for indices in region.box])
    return tensor[slices].reshape(-1)[region.run.start : region.run.stop]


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(st.data(), SHAPES)
def test_tiles_are_a_regions_values_in_order(data, shape):
    region, tensor = data.draw(regions(shape)), numbers(shape)
    found = values(region, tensor)
    whole = len(found) == volume(region.box)
    assert region.shape == (tuple(map(len, region.box)) if whole else (len(found),))
    end = 0
    for tile in region.tiles():
        assert tile.at == end
        end += volume(tile.box)
        own = values(Region(tile.box, range(volume(tile.box))), tensor)
        assert own.numel() and own.equal(found[tile.at : end])
        assert tile.view(found, tile.box).reshape(-1).equal(own)
    assert end == len(found) == len(region.run)


@given(st.data(), SHAPES)
def test_what_two_regions_have_in_common_is_copied_and_nothing_else(data, shape):
    here, there, tensor = data.draw(regions(shape)), data.draw(regions(shape)), numbers(shape)
    source, target = values(here, tensor), torch.full((len(there.run),), -1)
    expected = values(there, tensor)
    both = torch.isin(expected, source)
    count = copy(source, target, common(here, there))
    assert count == int(both.sum())
    assert target.equal(torch.where(both, expected, -1))


def test_many_pieces_of_one_tensor_are_compared_without_tiles():
    region = Region.all((3, 5))
    first, last = region._replace(run=range(4)), region._replace(run=range(11, 15))
    assert common(first, last) == []
    ((box, _, _),) = common(region, last)
    assert box == (range(11, 15),)

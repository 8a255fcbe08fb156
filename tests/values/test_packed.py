"""Tensors as parts of vectors; outside of a recording nothing is packed."""

from __future__ import annotations

import pytest
import torch

from fnloop._torch.tracing import compiling
from fnloop.values import packed
from fnloop.values.packed import Group, Vectors


class About:
    """What a recording offers."""

    def __init__(self):
        self.vectors = Vectors()


@pytest.fixture
def recording():
    about = About()
    with compiling(about):
        yield about


AB = Group(("a", "b"), (torch.Size([2, 2]), torch.Size([1, 2])))
CD = Group(("c", "d"), (torch.Size([]), torch.Size([2])))


def tensors():
    return {
        "x": torch.tensor([9.0]),
        "b": torch.tensor([[5.0, 6.0]]),
        "d": torch.tensor([0.5, 0.25]),
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "c": torch.tensor(8.0),
    }


def noted(recording):
    vectors = {group: group.join(tensors()) for group in (AB, CD)}
    parts = {name: t for group, vector in vectors.items() for name, t in group.part(vector).items()}
    return recording.vectors.note({**tensors(), **parts}, vectors), vectors


def test_a_group_joins_in_its_own_order_and_parts_again():
    vector = AB.join(tensors())
    assert vector.tolist() == [[1, 2], [3, 4], [5, 6]]
    parts = AB.part(vector)
    assert all(torch.equal(parts[name], tensors()[name]) for name in ("a", "b"))
    vector[0, 0] = 10.0
    assert parts["a"][0, 0] == 10.0  # views
    vector = CD.join(tensors())
    assert vector.tolist() == [8, 0.5, 0.25]
    assert {name: part.shape for name, part in CD.part(vector).items()} == {"c": (), "d": (2,)}


def test_nothing_is_packed_outside_of_a_recording():
    assert packed.groups_of(tensors()) == ()
    assert packed.vectors_of(tensors()) == {}
    assert packed.joined(tensors(), ()).keys() == tensors().keys()


def test_a_noted_dict_is_packed_until_it_is_changed(recording):
    parts, vectors = noted(recording)
    assert packed.vectors_of(parts) == vectors
    assert packed.groups_of(dict(parts)) == ()  # another dict
    parts["b"] = parts["b"] + 0
    assert packed.groups_of(parts) == ()


def test_joined_takes_the_vectors_that_are_there_and_makes_the_others(recording):
    parts, vectors = noted(recording)
    units = packed.joined(parts, (AB, CD))
    assert list(units) == ["a", "c", "x"]
    assert units["a"] is vectors[AB] and units["x"] is parts["x"]
    units = packed.joined(tensors(), (AB,))
    assert units["a"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert list(units) == ["a", "x", "d", "c"]


def test_parted_undoes_joined_and_notes_its_vectors(recording):
    units = packed.joined(tensors(), (AB, CD))
    parts = packed.parted(units, (AB, CD), tensors())
    assert list(parts) == list(tensors())
    assert all(torch.equal(parts[name], t) for name, t in tensors().items())
    assert packed.vectors_of(parts) == {AB: units["a"], CD: units["c"]}


def test_pick_keeps_only_whole_vectors(recording):
    parts, vectors = noted(recording)
    picked = packed.pick(parts, ["c", "a", "d"])
    assert list(picked) == ["c", "a", "d"]
    assert packed.vectors_of(picked) == {CD: vectors[CD]}
    assert set(packed.vectors_of(packed.pick(parts, ["b", "a", "x"]))) == {AB}


def test_together_keeps_a_vector_only_if_no_part_of_it_is_replaced(recording):
    parts, vectors = noted(recording)
    merged = packed.together(parts, {"b": torch.zeros(1, 2), "new": torch.ones(1)})
    assert list(merged) == ["x", "b", "d", "a", "c", "new"]
    assert merged["b"].tolist() == [[0, 0]]
    assert packed.vectors_of(merged) == {CD: vectors[CD]}


def test_memory_is_joined_wherever_a_dict_is_packed(recording):
    parts, vectors = noted(recording)
    memory = {"adam": {"mu": parts, "count": torch.tensor(3.0)}, "scale": {"lr": torch.ones(())}}
    units = packed.joined_memory(memory, (AB, CD))
    assert units["adam"]["mu"]["a"] is vectors[AB]
    assert units["adam"]["count"] is memory["adam"]["count"]
    doubled = {
        "adam": {
            "mu": {name: 2 * t for name, t in units["adam"]["mu"].items()},
            "count": units["adam"]["count"] + 1,
        },
        "scale": units["scale"],
    }
    again = packed.parted_memory(doubled, memory, (AB, CD))
    assert list(again["adam"]["mu"]) == list(parts)
    assert again["adam"]["mu"]["b"].tolist() == [[10, 12]]
    assert again["adam"]["count"] == 4 and again["scale"] is not None
    assert set(packed.vectors_of(again["adam"]["mu"])) == {AB, CD}

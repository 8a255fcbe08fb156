"""A manifest's entries for tensors, whole and in pieces."""

from __future__ import annotations

import pytest
import torch

from fnloop.store.leaves import Leaf, Piece, Saved, by_file
from fnloop.values.regions import Region

DIGEST = "0123456789abcdef" * 4
A, B, C = [f"state-0000{rank}.safetensors" for rank in range(3)]
ALL = (range(2), range(3))
LEFT, RIGHT = (range(2), range(1)), (range(2), range(1, 3))


def entry(*pieces, shape=(5,)):
    """An entry with pieces ``(file, start, count)`` or ``(file, start, count, slice)``."""
    named = [dict(zip(("file", "start", "count", "slice"), p, strict=False)) for p in pieces]
    pieces = [{**piece, "sha256": DIGEST} for piece in named]
    return {"dtype": "float32", "shape": list(shape), "pieces": pieces}


def test_entries_are_json_and_back():
    leaf = Leaf(torch.bfloat16, (2, 3), DIGEST)
    saved = Saved.of_one(leaf.entry(), "state.safetensors")
    assert saved.leaf(saved.pieces[0]) == leaf and leaf.nbytes == saved.nbytes == 12
    pieces = Piece(A, Region(ALL, range(4)), DIGEST), Piece(B, Region(ALL, range(4, 6)), DIGEST)
    saved = Saved(torch.bfloat16, (2, 3), pieces)
    assert Saved.of(saved.entry()) == saved
    assert "slice" not in saved.entry()["pieces"][0]
    pieces = Piece(B, Region(LEFT, range(2)), DIGEST), Piece(A, Region(RIGHT, range(4)), DIGEST)
    saved = Saved(torch.bfloat16, (2, 3), pieces)
    assert Saved.of(saved.entry()) == saved
    assert [piece["slice"] for piece in saved.entry()["pieces"]] == [[1, 0, 1], [1, 1, 3]]


def test_a_piece_is_flat_and_one_that_is_all_has_the_tensors_or_slices_shape():
    both = Saved.of(entry((A, 0, 4), (B, 4, 2), shape=(2, 3)))
    one = Saved.of(entry((B, 0, 6), shape=(2, 3)))
    cut = Saved.of(entry((A, 0, 2, [1, 0, 1]), (B, 0, 4, [1, 1, 3]), shape=(2, 3)))
    inside = {
        file: {p: leaf.shape for p, (_, leaf) in there.items()}
        for file, there in by_file({"a": both, "b": one, "c": cut})
    }
    assert inside == {A: {"a": (4,), "c": (2, 1)}, B: {"a": (2,), "b": (2, 3), "c": (2, 2)}}


@pytest.mark.parametrize("shape", [[-1], [1.5], [True], ["3"]])
def test_a_shape_of_anything_but_sizes_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        Saved.of_one({"dtype": "float32", "shape": shape, "sha256": DIGEST}, "x")
    with pytest.raises(ValueError, match="shape"):
        Saved.of(entry(shape=shape))


@pytest.mark.parametrize("shape", [[2**55], [2**31, 2**31], [0, 2**60], [1] * 65])
def test_a_shape_that_no_tensor_has_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        Saved.of_one({"dtype": "float32", "shape": [*shape, 2], "sha256": DIGEST}, "x")
    with pytest.raises(ValueError, match="shape"):
        Saved.of(entry(shape=[*shape, 2]))


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([(A, 0, 5)], None),
        ([(A, 0, 2), (B, 2, 3)], None),
        ([], "0 values"),
        ([(A, 0, 4)], "4 values"),
        ([(A, 0, 4), (B, 4, 2)], "6 values"),
        ([(A, 0, 2), (B, 3, 2)], "gap"),
        ([(A, 0, 3), (B, 2, 3)], "gap, or overlap"),
        ([(B, 2, 3), (A, 0, 2)], "gap"),
        ([(A, 0, 2), (A, 2, 3)], "in one file"),
        ([(A, 0, 5), (B, 5, 0)], "start or count"),
        ([(A, -1, 6)], "start or count"),
        ([(A, 0, 5.0)], "start or count"),
        ([(A, 0, True), (B, 1, 4)], "start or count"),
        ([("../state-00000.safetensors", 0, 5)], "no name of a file"),
        ([("state.safetensors", 0, 5)], "no name of a file"),
        ([(7, 0, 5)], "no name of a file"),
    ],
)
def test_pieces_are_all_values_once_and_in_order(pieces, why):
    if why is None:
        assert Saved.of(entry(*pieces)).numel == 5
        return
    with pytest.raises(ValueError, match=why):
        Saved.of(entry(*pieces))


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([(A, 0, 4, [1, 0, 2]), (B, 0, 2, [1, 2, 3])], None),
        ([(A, 0, 2, [1, 0, 2]), (B, 2, 2, [1, 0, 2]), (C, 0, 2, [1, 2, 3])], None),
        ([(A, 0, 6, [1, 0, 3])], "no part"),
        ([(A, 0, 6, [2, 0, 1])], "no part"),
        ([(A, 0, 2, [1, 1, 1])], "no part"),
        ([(A, 0, 2, [1, 2, 4])], "no part"),
        ([(A, 0, 2, [1, 2])], "no dimension"),
        ([(A, 0, 2, [True, 2, 3])], "no dimension"),
        ([(A, 0, 4, [1, 0, 2])], "end at index 2"),
        (
            [(A, 0, 2, [1, 0, 1]), (B, 0, 2, [1, 2, 3])],
            "slices leave a gap, or overlap, at index 1",
        ),
        (
            [(A, 0, 4, [1, 0, 2]), (B, 0, 4, [1, 1, 3])],
            "slices leave a gap, or overlap, at index 2",
        ),
        ([(A, 0, 2, [1, 2, 3]), (B, 0, 4, [1, 0, 2])], "slices leave a gap"),
        ([(A, 0, 3, [0, 0, 1]), (B, 0, 2, [1, 2, 3])], "one dimension"),
        ([(A, 0, 2, [1, 0, 1]), (B, 0, 6)], "slices leave a gap"),
        ([(A, 0, 3, [1, 0, 2]), (B, 0, 2, [1, 2, 3])], "3 values, and its slice 4"),
        ([(A, 0, 4, [1, 0, 2]), (A, 0, 2, [1, 2, 3])], "in one file"),
    ],
)
def test_slices_are_all_of_a_tensor_along_one_dimension(pieces, why):
    if why is None:
        assert Saved.of(entry(*pieces, shape=(2, 3))).numel == 6
        return
    with pytest.raises(ValueError, match=why):
        Saved.of(entry(*pieces, shape=(2, 3)))


def test_a_tensor_without_values_has_no_pieces():
    assert Saved.of(entry(shape=(0, 3))).pieces == ()
    with pytest.raises(ValueError, match="start or count"):
        Saved.of(entry((A, 0, 0), shape=(0, 3)))


@pytest.mark.parametrize("change", [{"sha256": "no"}, {"sha256": 7}, {"more": 1}, {"start": "0"}])
def test_a_piece_of_odd_entries_is_refused(change):
    odd = entry((A, 0, 5))
    odd["pieces"][0].update(change)
    with pytest.raises(ValueError, match=r"sha256|start or count|not a file"):
        Saved.of(odd)

import math

import pytest

from fnloop.store.topk import TopK

nan = math.nan


def stored(keep, mode, scores):
    top, after = TopK(keep, mode), []
    for count, score in enumerate(scores, 1):
        top = top.add(count, score)
        after.append(top.entries)
    return after


@pytest.mark.lightning("C3", "K3", "V2")
def test_lightning_vector():
    assert stored(2, "min", [5, 3, 3, 4, 2]) == [
        ((1, 5),),
        ((1, 5), (2, 3)),
        ((2, 3), (3, 3)),  # 5 leaves
        ((2, 3), (3, 3)),  # 4 is not taken
        ((3, 3), (5, 2)),  # of the equally bad, the first leaves
    ]


def test_lightning_vector_mirrored():
    assert stored(2, "max", [-5, -3, -3, -4, -2])[-1] == ((3, -3), (5, -2))


@pytest.mark.lightning("V2")
def test_a_tie_with_the_worst_is_not_taken():
    assert stored(2, "min", [3, 3, 3])[-1] == ((1, 3), (2, 3))
    assert stored(2, "max", [3, 3, 3])[-1] == ((1, 3), (2, 3))


@pytest.mark.lightning("V2")
@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_fills_a_free_place_and_beats_nothing(mode):
    counts = [[count for count, _ in entries] for entries in stored(2, mode, [nan, 1, nan, 2, nan])]
    assert counts == [[1], [1, 2], [1, 2], [2, 4], [2, 4]]


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_nan_is_as_bad_as_the_worst_number(mode, worst):
    assert stored(1, mode, [worst, nan])[-1] == ((1, worst),)
    assert [count for count, _ in stored(1, mode, [nan, worst])[-1]] == [1]


def test_none_keeps_all_and_zero_keeps_none():
    assert [count for count, _ in stored(None, "min", [1, nan, 3])[-1]] == [1, 2, 3]
    assert stored(0, "min", [1])[-1] == ()


def test_what_is_not_taken_leaves_the_same_object():
    top = TopK(1).add(1, 1.0)
    assert top.add(2, 1.0) is top and top.add(2, 0.5) is not top

"""A slot gets its memory without losing what is in it."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl
from fnloop.values.memory import fill
from fnloop.values.start import start
from fnloop.values.tensors import Tensors

STATE = start(torch.nn.Linear(2, 1))


def test_a_new_slot_is_what_the_stage_wants():
    fresh = {"count": torch.zeros(())}
    filled = fill(STATE, "x", fresh)
    assert filled["x"] is fresh and "x" not in STATE.slots


def test_what_is_there_stays_and_what_is_missing_is_added():
    old = STATE.put("x", {"count": torch.tensor(7.0), "more": {"mine": torch.tensor(1)}})
    fresh = {"count": torch.zeros(()), "new": torch.ones(2), "more": {"theirs": torch.tensor(2)}}
    filled = fill(old, "x", fresh)["x"]
    assert float(filled["count"]) == 7 and filled["new"].tolist() == [1, 1]
    assert {name: int(t) for name, t in filled["more"].items()} == {"mine": 1, "theirs": 2}


def test_named_tensors_take_the_place_of_a_dict_that_was_loaded():
    fresh = {"mu": Tensors({"w": torch.zeros(2), "b": torch.zeros(1)})}
    for loaded in ({"b": torch.ones(1), "w": torch.full((2,), 5.0)}, Tensors({"w": torch.ones(2)})):
        filled = fill(STATE.put("x", {"mu": loaded}), "x", fresh)["x"]["mu"]
        assert isinstance(filled, Tensors) and filled.layout is fresh["mu"].layout
        assert all(torch.equal(filled[name], loaded.get(name, fresh["mu"][name])) for name in "wb")


def test_a_name_that_is_no_longer_wanted_stays_with_the_tensors():
    old = STATE.put("x", {"mu": {"w": torch.ones(2), "gone": torch.ones(3)}})
    filled = fill(old, "x", {"mu": Tensors({"w": torch.zeros(2)})})["x"]["mu"]
    assert isinstance(filled, Tensors) and sorted(filled) == ["gone", "w"]
    assert filled["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (torch.ones(3), r"slots/x/mu/w +f32\[3\] +f32\[2\]"),
        (torch.ones(2, dtype=torch.float64), r"slots/x/mu/w +f64\[2\] +f32\[2\]"),
        (torch.ones(2, dtype=torch.int32), r"slots/x/mu/w +i32\[2\] +f32\[2\]"),
    ],
)
@pytest.mark.parametrize("kind", [dict, Tensors])
def test_a_leaf_of_another_shape_or_dtype_is_an_error_with_a_table(old, message, kind):
    state = STATE.put("x", {"mu": kind({"w": old})})
    for fresh in ({"w": torch.zeros(2)}, Tensors({"w": torch.zeros(2)})):
        with pytest.raises(ValueError, match=message) as error:
            fill(state, "x", {"mu": fresh})
        assert "another model" in str(error.value) and "k != 'x'" in str(error.value)


def test_all_that_clashes_is_in_the_table():
    state = STATE.put("x", {"a": torch.ones(1), "b": {"c": torch.ones(2)}})
    with pytest.raises(ValueError, match=r"slots/x/a .*\nslots/x/b/c "):
        fill(state, "x", {"a": torch.ones(2), "b": {"c": torch.ones(1)}})


def test_a_single_leaf_as_memory():
    assert int(fill(STATE.put("x", torch.tensor(3)), "x", torch.tensor(0))["x"]) == 3
    with pytest.raises(ValueError, match=r"slots/x +i64\[\] +i64\[2\]"):
        fill(STATE.put("x", torch.tensor(3)), "x", torch.zeros(2, dtype=torch.int64))


def test_memory_that_is_a_tree_is_filled_from_the_dict_that_was_loaded():
    @fl.tree
    class Moments:
        mu: torch.Tensor
        nu: torch.Tensor

    fresh = Moments(torch.zeros(2), torch.zeros(2))
    filled = fill(STATE.put("x", {"mu": torch.ones(2)}), "x", fresh)["x"]
    assert isinstance(filled, Moments)
    assert filled.mu.tolist() == [1, 1] and filled.nu.tolist() == [0, 0]


@pytest.mark.parametrize("fresh", [{"count": 0}, 0.5, {"a": {"b": [torch.zeros(()), 1]}}])
def test_memory_is_made_of_tensors(fresh):
    with pytest.raises(TypeError, match=r"at slots/x(/count|/a/b/1)?\. Memory is made of tensors"):
        fill(STATE, "x", fresh)


def test_what_is_there_and_is_no_tensor_stays():
    assert fill(STATE.put("x", {"count": 7}), "x", {"count": torch.tensor(0)})["x"] == {"count": 7}

from __future__ import annotations

import itertools

import pytest
import torch

import fnloop as fl
from fnloop.values.choice import both, either, invert, select, stepped
from fnloop.values.metrics import Last, Sum
from fnloop.values.tensors import Tensors

NEW = {"a": torch.tensor(1.0), "b": {"c": torch.tensor([1, 2])}, "only": torch.tensor(5.0)}
OLD = {"a": torch.tensor(3.0), "b": {"c": torch.tensor([4, 5])}}


def test_what_the_old_one_does_not_have_stays():
    for no in (False, torch.tensor(False)):
        chosen = select(no, NEW, OLD)
        assert list(chosen) == ["a", "b", "only"]
        assert float(chosen["a"]) == 3 and chosen["b"]["c"].tolist() == [4, 5]
        assert chosen["only"] is NEW["only"]
    chosen = select(torch.tensor(True), NEW, OLD)
    assert float(chosen["a"]) == 1 and chosen["b"]["c"].dtype == torch.int64
    assert select(True, NEW, OLD) is NEW


def test_metrics_keep_their_double_precision():
    new, old = (Sum(torch.tensor(x, dtype=torch.float64)) for x in (1e-9, 1 / 3))
    chosen = select(torch.tensor(False), new, old)
    assert chosen.total.dtype == torch.float64 and float(chosen) == 1 / 3
    last = Last(torch.tensor(0.1, dtype=torch.float64))
    assert select(torch.tensor(False), last, last.empty()) is last


def test_named_tensors_are_chosen_by_name_and_a_known_flag_copies_nothing():
    new = Tensors({"w": torch.ones(2), "b": torch.zeros(1)})
    old = Tensors({"b": torch.full((1,), 5.0), "w": torch.full((2,), 4.0)})
    assert select(True, new, old) is new and select(False, new, old) is old
    for flag in (True, False):
        chosen = select(torch.tensor(flag), new, old)
        assert chosen == (new if flag else old.select(new.names))
        assert chosen.names == new.names


@pytest.mark.parametrize(
    "kinds",
    list(itertools.product((bool, torch.tensor), repeat=2)),
    ids=lambda kinds: "-".join(kind.__name__ for kind in kinds),
)
def test_flags_combine_whether_known_or_not(kinds):
    for a, b in itertools.product((False, True), repeat=2):
        x, y = (kind(flag) for kind, flag in zip(kinds, (a, b), strict=True))
        assert bool(both(x, y)) == (a and b)
        assert bool(either(x, y)) == (a or b)
        assert bool(invert(x)) != a
    unknown = torch.tensor(True)
    assert both(False, unknown) is False and either(unknown, True) is True  # nothing to compute


def test_a_step_that_was_skipped_has_not_stepped():
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(torch.nn.Linear(2, 1))
    assert stepped(state, step(state, torch.ones(3, 2))[0]) is True
    assert stepped(state, step(state, torch.full((3, 2), torch.nan))[0]) is False
    assert stepped(state, state.replace(calls=state.calls + 1)) is False

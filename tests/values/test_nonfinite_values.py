from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

import fnloop as fl
from fnloop.values.nonfinite_values import Nonfinite, in_batch, in_state, tensors_in


def test_counts_and_places_are_those_of_a_plain_search():
    x = torch.randn(30, 4, 5)
    places = [(2, 1, 3), (7, 0, 0), (7, 3, 4), (29, 0, 1)]
    for place, value in zip(places, (torch.nan, torch.inf, -torch.inf, torch.nan), strict=True):
        x[place] = value
    found = Nonfinite.of("forward", "x", x)
    assert (found.count, found.size, found.index) == (4, 600, (2, 1, 3))
    assert found.rows == (2, 7, 29) and not found.masks
    assert "4 of 600 values, first at [2, 1, 3]" in str(found)


def test_what_is_finite_or_no_number_is_nothing():
    for value in (torch.ones(3), torch.ones(3, dtype=torch.int64), torch.ones(0), "text", None):
        assert Nonfinite.of("batch", "x", value) is None
    assert Nonfinite.of("batch", "x", torch.ones(2, device="meta")) is None
    assert Nonfinite.of("batch", "x", torch.eye(2).to_sparse()) is None


def test_numbers_of_other_kinds_are_looked_at():
    assert Nonfinite.of("batch", "x", np.array([1.0, np.nan])).index == (1,)
    assert Nonfinite.of("batch", "x", torch.tensor([1j, complex("nan")])).count == 1
    assert Nonfinite.of("batch", "x", torch.tensor([1, torch.inf], dtype=torch.bfloat16)).count == 1
    assert Nonfinite.of("loss", "loss", torch.tensor(torch.nan)).index == ()


def test_a_mask_is_minus_infinity_in_every_row():
    mask = torch.zeros(3, 4)
    mask[:, 2] = -torch.inf
    assert Nonfinite.of("forward", "x", mask).masks
    mask[1, 2] = 0.0
    assert not Nonfinite.of("forward", "x", mask).masks
    assert not Nonfinite.of("forward", "x", -mask).masks


def test_leaves_of_a_batch_have_their_paths():
    batch = {"x": torch.tensor([torch.nan]), "y": (1, torch.tensor([torch.inf]))}
    assert [bad.path for bad in in_batch(batch)] == ["batch/x", "batch/y/1"]
    assert [bad.path for bad in in_batch(torch.tensor([torch.nan]))] == ["batch"]


def test_of_a_state_what_may_be_infinite_is_left_out():
    step = fl.pipe(lambda m, b: m(b).mean(), fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    model = nn.Linear(2, 1)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    state = step.init(model).put("early_stopping", {"best": torch.tensor(torch.inf)})
    assert list(in_state(state)) == []
    bad = {"weight": torch.full((1, 2), torch.nan), "bias": torch.zeros(1)}
    found = in_state(state.put("ema", bad).replace(buffers={"mask": torch.tensor([torch.nan])}))
    assert [bad.path for bad in found] == ["buffers/mask", "slots/ema/weight"]


def test_tensors_of_a_modules_output():
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        loss: torch.Tensor | None = None

    x = torch.ones(1)
    cases = [
        (x, [""]),
        ((x, [x, None]), ["[0]", "[1][0]"]),
        (OrderedDict(a=x, b=(x,)), ["[a]", "[b][0]"]),
        (Output(x), [".logits"]),
        ("text", []),
    ]
    for output, places in cases:
        assert [place for place, _ in tensors_in(output)] == places

"""What `fl.scale` takes, and that it keeps the state's dtypes and shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl

STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)))
HALVES = [
    0.5,
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.float64),
    torch.tensor(0.5, dtype=torch.bfloat16),
    np.float32(0.5),
    np.float64(0.5),
    np.array(0.5),
]


@pytest.mark.parametrize("half", HALVES, ids=repr)
@pytest.mark.parametrize("how", ["factor", "to"])
def test_a_half_of_any_kind(half, how):
    state = STEP.init(nn.Linear(2, 1))
    new = fl.scale(state, "adamw.lr", **{how: half})
    assert fl.tree_equal(new, fl.scale(state, "adamw.lr", **{how: 0.5}))
    _, metrics = STEP(new, torch.ones(3, 2))
    assert metrics["adamw.lr"] == 0.05


def test_it_can_be_differentiated():
    state, x = STEP.init(nn.Linear(2, 1).double()), torch.ones(3, 2).double()

    def after(to):
        return STEP(fl.scale(state, "adamw.lr", to=to), x)[0].params["weight"].sum()

    slope = torch.func.grad(after)(torch.tensor(0.5, dtype=torch.float64))
    expected = (after(torch.tensor(0.75)) - after(torch.tensor(0.25))) / 0.5
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["factor", "to"])
def test_what_is_no_multiplier_is_refused(how):
    state = STEP.init(nn.Linear(2, 1))
    for wrong, kind, message in [
        (math.nan, ValueError, "a finite number of at least 0, got nan"),
        (math.inf, ValueError, "a finite number of at least 0, got inf"),
        (torch.ones(2), ValueError, r"shape, f64\[\]; got f64\[2\]"),
        ("0.5", TypeError, "a number or a 0-d tensor, got '0.5'"),
    ]:
        with pytest.raises(kind, match=message):
            fl.scale(state, "adamw.lr", **{how: wrong})
    with pytest.raises(TypeError, match="exactly one of the two"):
        fl.scale(state, "adamw.lr")

from __future__ import annotations

import pytest
import torch

from fnloop.optim.algorithms.rmsprop import rmsprop
from fnloop.optim.algorithms.sgd import sgd
from fnloop.schedules.decay import constant, linear
from fnloop.schedules.phases import join
from fnloop.values.tensors import Tensors


def test_nesterov_needs_momentum_and_no_dampening():
    with pytest.raises(ValueError, match="nesterov=True needs momentum"):
        sgd(0.1, nesterov=True)
    with pytest.raises(ValueError, match=r"dampening=0\.1"):
        sgd(0.1, momentum=0.9, dampening=0.1, nesterov=True)


def test_plain_has_no_memory():
    assert sgd(0.1).init(Tensors({"w": torch.ones(2)})) == {"sgd": {}}


@pytest.mark.parametrize("make", [sgd, rmsprop])
def test_a_momentum_that_a_schedule_brings_to_zero_keeps_its_memory(make):
    # At step 1 the momentum is zero, and the memory is that step's direction alone.
    momentum = join((constant(0.9), linear(0.0, 0.9, steps=1)), (1,))
    optimizer = make(1.0, momentum=momentum)
    params = Tensors({"w": torch.tensor([5.0])})
    memory, moves = optimizer.init(params), []
    for step, g in enumerate((1.0, 1.0, 1.0)):
        resolved = optimizer.resolve(step, {})
        assert resolved.momentum == (0.9, 0.0, 0.9)[step]
        grads = Tensors({"w": torch.tensor([g])})
        new, memory = resolved.apply(grads, memory, params, step, True)
        moves.append(float(params["w"] - new["w"]))
        params = new
    if make is sgd:
        assert moves == pytest.approx([1.0, 1.0, 1.9])
    else:
        d = [(1 - 0.99**t) ** -0.5 for t in (1, 2, 3)]
        assert moves == pytest.approx([d[0], d[1], 0.9 * d[1] + d[2]])


def test_dampening_is_exact_in_float64():
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    theirs = torch.nn.Parameter(w.clone())
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, dampening=0.3)
    optimizer, params = sgd(0.1, momentum=0.9, dampening=0.3), Tensors({"w": w})
    memory = optimizer.init(params)
    for step in range(20):
        theirs.grad = theirs.detach().sin()
        reference.step()
        updates, memory = optimizer.update(
            Tensors({"w": params["w"].sin()}), memory, params, step=step
        )
        params = params.add(updates)
    assert torch.allclose(params["w"], theirs, rtol=1e-14, atol=0)

"""The average against torch.optim.swa_utils.AveragedModel."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fnloop as fl


def loss(model, x):
    return model(x).square().mean()


@pytest.mark.lightning("C12")
def test_it_is_torchs_average_of_the_parameters_after_each_step():
    model = nn.Linear(3, 2)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.3)), fl.ema(0.8))
    state = step.init(model)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    averaged.n_averaged += 1  # it starts from the initial parameters, as ours does
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for i in range(20):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
        averaged.update_parameters(model)
        state, _ = step(state, x)
    for name, p in averaged.module.named_parameters():
        torch.testing.assert_close(state["ema"][name], p.detach())


@pytest.mark.parametrize("start", [1, 4])
def test_a_decay_of_zero_at_first_makes_it_begin_as_torchs_does(start):
    model = nn.Linear(3, 2)
    decay = fl.schedules.join((fl.schedules.constant(0.0), fl.schedules.constant(0.8)), (start,))
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.3)), fl.ema(decay))
    state = step.init(model)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for i in range(1, 9):
        state, _ = step(state, torch.randn(5, 3, generator=torch.Generator().manual_seed(i)))
        live = fl.to_module(state)
        if i >= start:  # the first call copies
            averaged.update_parameters(live)
        theirs = averaged.module if i >= start else live
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(state["ema"][name], p.detach(), rtol=1e-5, atol=1e-7)
    assert not torch.equal(state["ema"]["weight"], state.params["weight"])


@pytest.mark.lightning("C12")
def test_it_is_evaluated_and_exported_by_name():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.3)), fl.ema(0.5))
    state, _ = step(step.init(nn.Linear(3, 1)), torch.ones(4, 3))
    module = fl.to_module(state, params="ema")
    assert torch.equal(module.weight, state["ema"]["weight"])
    data = [torch.ones(4, 3)]
    assert fl.evaluate(loss, state, data, params="ema")["loss"] == pytest.approx(
        loss(module, data[0]).item()
    )
    with pytest.raises(ValueError, match=r"swa.*it has: ema, update"):
        fl.evaluate(loss, state, data, params="swa")
    with pytest.raises(ValueError, match="holds no parameters"):
        fl.evaluate(loss, state, data, params="update")


@pytest.mark.lightning("V5")
def test_a_skipped_step_does_not_move_it():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.3)), fl.ema(0.5))
    state, _ = step(step.init(nn.Linear(3, 1)), torch.ones(4, 3))
    after, _ = step(state, torch.full((4, 3), torch.nan))
    assert fl.tree_equal(after["ema"], state["ema"])


def test_the_average_of_half_precision_parameters_is_float32():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(1e-3)), fl.ema(0.999))
    state = step.init(nn.Linear(3, 1).to(torch.bfloat16))
    after, _ = step(state, torch.ones(4, 3, dtype=torch.bfloat16))
    assert after["ema"]["weight"].dtype == torch.float32
    assert fl.to_module(after, params="ema").weight.dtype == torch.bfloat16

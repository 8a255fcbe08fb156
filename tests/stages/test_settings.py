"""The settings of the process: steps do what they do, or say what is to be done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(), {"half": 0.5, "size": model(x).abs().mean()}


STEPS = {
    "plain": fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1))),
    "everything": fl.pipe(
        loss,
        fl.grad,
        fl.accumulate(2),
        fl.amp("fp16", init_scale=2.0**8, interval=5),
        fl.update(
            fl.optim.chain(
                fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(0.1, steps=9))
            )
        ),
        fl.ema(0.9),
        fl.guard(fl.spike("loss"), then="rewind"),
    ),
    "sgd": fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1, momentum=0.9)), fl.ema(0.9)),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))


def batch(dtype=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float32)
    return x.to(dtype or torch.get_default_dtype()), x[:, :2].to(dtype or torch.get_default_dtype())


def after(step, model, x, steps=3):
    state = step.init(model)
    for _ in range(steps):
        state, metrics = step(state, x)
    return state, metrics


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_under_a_default_dtype_of_float64(name, compiled, doubles):
    step = fl.compile(STEPS[name], backend="aot_eager") if compiled else STEPS[name]
    state, metrics = after(step, net(), batch())
    assert {p.dtype for p in state.params.values()} == {torch.float64}
    assert int(state.step) == 3 and float(metrics["half"]) == 0.5


@pytest.mark.parametrize("name", STEPS)
def test_the_default_dtype_changes_no_bit_for_a_float32_model(name):
    step, x, model = STEPS[name], batch(), net()
    expected = after(step, model, x)
    torch.set_default_dtype(torch.float64)
    try:
        got = after(step, model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert fl.tree_diff(expected, got) == ""


@pytest.mark.parametrize("name", STEPS)
def test_inside_inference_mode_a_step_runs_or_says_what_to_do(name):
    step, x = STEPS[name], batch()
    state = step.init(net())
    expected = step(state, x)
    with torch.inference_mode():
        try:
            got = step(state, x)
        except RuntimeError as error:
            assert "inference_mode" in "\n".join([str(error), *getattr(error, "__notes__", [])])
            return
    assert fl.tree_diff(expected, got) == ""


@pytest.mark.parametrize("name", STEPS)
def test_no_grad_changes_no_bit(name):
    step, x = STEPS[name], batch()
    state = step.init(net())
    with torch.no_grad():
        got = step(state, x)
        assert not torch.is_grad_enabled()
    assert fl.tree_diff(step(state, x), got) == ""


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", STEPS)
def test_anomaly_mode_changes_no_bit(name):
    step, x = STEPS[name], batch()
    state = step.init(net())
    with torch.autograd.detect_anomaly():
        got = step(state, x)
    assert fl.tree_diff(step(state, x), got) == ""


@pytest.mark.parametrize("name", STEPS)
def test_seeds_are_integers_of_whatever_kind(name):
    step = STEPS[name]
    three = step.init(net, seed=3)
    for seed in (np.int64(3), np.int32(3), np.uint8(3), torch.tensor(3)):
        assert fl.tree_diff(three, step.init(net, seed=seed)) == ""
    assert step.init(net, seed=-1).key != step.init(net, seed=2**63 - 1).key
    for wrong in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="must fit an int64"):
            step.init(net, seed=wrong)
    for wrong in (0.5, "3", None):
        with pytest.raises(TypeError, match="A seed is an integer"):
            step.init(net, seed=wrong)


@pytest.mark.parametrize(("a", "b"), [(-1, 2**63 - 1), (3, 2**32 + 3)])
def test_other_seeds_give_other_parameters(a, b):
    step = STEPS["plain"]
    first, second = (step.init(lambda: nn.Linear(3, 4), seed=seed) for seed in (a, b))
    assert first.params != second.params

"""Mixed precision against torch.amp.GradScaler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop.values.context import EMPTY


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batches(n, bad=()):
    generator = torch.Generator().manual_seed(1)
    for i in range(n):
        x, y = (
            torch.randn(8, 6, generator=generator),
            torch.randint(0, 3, (8,), generator=generator),
        )
        yield (x * float("inf"), y) if i in bad else (x, y)


@pytest.mark.lightning("T5", "P2")
def test_fp16_follows_the_grad_scaler_through_overflows_and_growth():
    step = fl.pipe(
        loss,
        fl.grad,
        fl.amp("fp16", init_scale=2.0**10, interval=3),
        fl.update(fl.optim.sgd(0.1, momentum=0.9)),
    )
    model = net()
    state = step.init(model)
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for x, y in batches(14, bad=(4, 5, 9)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            value = F.cross_entropy(reference(x), y)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        state, metrics = step(state, (x, y))
        assert float(state["amp"]["scale"]) == scaler.get_scale()
        for name, p in reference.named_parameters():
            torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-3, atol=1e-5)
    assert int(state.step) == 11
    assert float(metrics["amp.scale"]) > 0


def test_the_rule_of_the_scale_is_the_grad_scalers_with_its_defaults():
    theirs = torch.amp.GradScaler("cpu").state_dict()
    amp = fl.amp("fp16")(fl.grad(loss))
    assert (amp.init_scale, amp.growth, amp.backoff, amp.interval) == tuple(
        theirs[name] for name in ("scale", "growth_factor", "backoff_factor", "growth_interval")
    )
    step = fl.pipe(
        loss,
        fl.grad,
        fl.amp("fp16", init_scale=2.0**8, growth=4.0, backoff=0.25, interval=2),
        fl.update(fl.optim.sgd(0.1)),
    )
    state, p = step.init(net()), torch.nn.Parameter(torch.ones(()))
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**8, growth_factor=4.0, backoff_factor=0.25, growth_interval=2
    )
    optimizer, bad = torch.optim.SGD([p], lr=0.0), (2, 5, 6)
    for i, batch in enumerate(batches(12, bad)):
        scaler.scale(p * (float("inf") if i in bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state, _ = step(state, batch)
        own = state["amp"]
        assert float(own["scale"]) == scaler.get_scale()
        assert int(own["good"]) == scaler.state_dict()["_growth_tracker"]


def test_small_gradients_survive_in_fp16_whatever_the_weight():
    """Weighted by 60,000 tokens, a scaled SUM would overflow float16; unscaled ones vanish."""

    def tiny(model, x):
        out = model(x) * 1e-4
        return fl.Mean(out.float().sum() * 60_000, 60_000)

    x = torch.full((4, 6), 1e-3)
    model = nn.Linear(6, 1)
    step = fl.pipe(tiny, fl.grad, fl.amp("fp16", init_scale=2.0**12))
    _, grads = step(step.init(model), x)
    assert bool(grads.finite)
    (model(x) * 1e-4).sum().backward()
    torch.testing.assert_close(grads.mean["weight"], model.weight.grad, rtol=1e-2, atol=1e-9)


@pytest.mark.lightning("T5")
def test_bf16_runs_the_forward_in_bfloat16_and_keeps_float32_parameters():
    seen = []

    def spying(model, batch):
        out = model(batch[0])
        seen.append(out.dtype)
        return F.cross_entropy(out, batch[1])

    step = fl.pipe(spying, fl.grad, fl.amp("bf16"), fl.update(fl.optim.adamw(1e-3)))
    state = step.init(net())
    state, _ = step(state, next(batches(1)))
    assert seen == [torch.bfloat16] and "amp" not in state.slots
    assert {p.dtype for p in state.params.values()} == {torch.float32}
    assert state.context == EMPTY


def test_the_backward_is_not_under_autocast():
    """A float32 matrix product in a custom backward must stay float32."""
    dtypes = []

    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            a = torch.ones(2, 2)
            dtypes.append((a @ a).dtype)
            return g

    step = fl.pipe(lambda m, x: Custom.apply(m(x).float()).mean(), fl.grad, fl.amp("bf16"))
    step(step.init(nn.Linear(2, 1)), torch.ones(3, 2))
    assert dtypes == [torch.float32]


def test_wrong_precision():
    with pytest.raises(ValueError, match="fp8"):
        fl.amp("fp8")(fl.grad(loss))


def test_the_scale_has_a_floor_and_recovers():
    step = fl.pipe(
        loss, fl.grad, fl.amp("fp16", init_scale=8.0, interval=2), fl.update(fl.optim.sgd(0.1))
    )
    state = step.init(net())
    for x in batches(200, bad=range(200)):
        state, metrics = step(state, x)
        assert float(metrics["skipped"]) == 1
    assert float(state["amp"]["scale"]) == 1.0 and int(state.step) == 0
    for x in batches(6):
        state, metrics = step(state, x)
        assert float(metrics["skipped"]) == 0
    assert float(state["amp"]["scale"]) == 8.0 and int(state.step) == 6


def test_a_floor_of_ones_own():
    amp = fl.amp("fp16", init_scale=4.0, min_scale=2.0**-10, backoff=0.25)
    step = fl.pipe(loss, fl.grad, amp, fl.update(fl.optim.sgd(0.1)))
    state = step.init(net())
    for x in batches(20, bad=range(20)):
        state, _ = step(state, x)
    assert float(state["amp"]["scale"]) == 2.0**-10
    below = fl.pipe(loss, fl.grad, fl.amp("fp16", init_scale=0.5), fl.update(fl.optim.sgd(0.1)))
    state, _ = below(below.init(net()), next(batches(1, bad=(0,))))
    assert float(state["amp"]["scale"]) == 0.5  # a floor does not raise it


@pytest.mark.parametrize("field", ["init_scale", "min_scale"])
@pytest.mark.parametrize("value", [0, 0.0, float("inf"), float("nan"), 1e-45, -1, 1e300])
def test_a_scale_that_could_not_be_undone_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"amp\({field}=.* from 1\.17549e-38 to"):
        fl.amp("fp16", **{field: value})(fl.grad(loss))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("growth", [0, 0.5, -1, float("inf"), float("nan")]),
        ("backoff", [0, 1, 1.5, -0.5, float("inf"), float("nan")]),
        ("interval", [0, -1]),
    ],
)
def test_a_rule_that_could_not_work_is_refused(field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"amp\({field}="):
            fl.amp("fp16", **{field: value})(fl.grad(loss))


def test_the_scale_grows_only_as_far_as_it_can_be_undone():
    step = fl.pipe(loss, fl.grad, fl.amp("fp16", init_scale=2.0**-3, growth=2.0**64, interval=1))
    state = step.init(net())
    scales = []
    for x in batches(3):
        state, _ = step(state, x)
        scales.append(float(state["amp"]["scale"]))
    assert scales[0] == 2.0**61 and max(scales) <= 2.0**126
    assert all(1 / s >= 2.0**-126 for s in scales)

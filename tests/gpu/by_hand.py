"""Steps equal those of loops that are written by hand, in all precisions."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

import fnloop as fl

from .problems import arrays, backend, batches, loss, simple, smooth, started

OPTIMIZERS = {
    "adamw": (lambda: fl.optim.adamw(1e-2, weight_decay=0.1), torch.optim.AdamW, 0.1),
    "adam": (lambda: fl.optim.adam(1e-2), torch.optim.Adam, 0.0),
    "sgd": (lambda: fl.optim.sgd(1e-2), torch.optim.SGD, 0.0),
    "adagrad": (lambda: fl.optim.adagrad(1e-2), torch.optim.Adagrad, 0.0),
    "rmsprop": (lambda: fl.optim.rmsprop(1e-2), torch.optim.RMSprop, 0.0),
    "adamw of torch": (
        lambda: fl.optim.from_torch(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW,
        0.1,
    ),
}


def optimizers(device: str) -> None:
    """Eager and donating steps of six optimizers are those of `torch.optim`."""
    for name, (make, theirs, decay) in OPTIMIZERS.items():
        step = simple(make())
        model, given = _model(step, device), batches(5, device)
        optimizer = theirs(model.parameters(), lr=1e-2, weight_decay=decay)
        for donate in (False, True):
            own, state = step.donating() if donate else step, started(step, smooth, device)
            for batch in given:
                state, _ = own(state, batch)
            if not donate:
                for batch in given:
                    _classic(model, optimizer, batch)
            _same(state, model, f"{name}, donating" if donate else name, 1e-4, 1e-5)


def schedules(device: str) -> None:
    """A schedule, a multiplier of it (`fl.scale`) and decay that are on the device."""
    step = simple(fl.optim.adamw(fl.schedules.linear(1e-2, 1e-3, steps=8), weight_decay=0.1))
    state = fl.scale(started(step, smooth, device), "adamw.lr", 0.5)
    model, given = _model(step, device), batches(8, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    for i, batch in enumerate(given):
        state, metrics = step(state, batch)
        rate = 0.5 * (1e-2 + (1e-3 - 1e-2) * i / 8)
        for group in optimizer.param_groups:
            group["lr"] = rate
        _classic(model, optimizer, batch)
        assert abs(float(metrics["adamw.lr"]) / rate - 1) < 1e-6
    _same(state, model, "a schedule", 1e-4, 1e-5)


def bf16(device: str) -> None:
    """bf16, eager and compiled, is `torch.autocast`."""
    step = simple(fl.optim.sgd(0.1), fl.amp("bf16"))
    given = batches(6, device)
    compiled = fl.compile(step, backend=backend(device))
    for own, rtol, atol in ((step, 1e-5, 1e-6), (compiled, 1e-2, 2e-3)):
        model, state = _model(step, device), started(step, smooth, device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in given:
            state, _ = own(state, batch)
            _classic(model, optimizer, batch, torch.autocast(device, torch.bfloat16))
        assert all(p.dtype is torch.float32 for p in state.params.values())
        _same(state, model, "bf16", rtol, atol)
    seen = fl.pipe(_kinds, fl.grad, fl.amp("bf16"), fl.update(fl.optim.sgd(0.1)))
    for own in (seen, fl.compile(seen, backend=backend(device))):
        _, metrics = own(started(seen, smooth, device), given[0])
        assert float(metrics["bf16"]) == 1, "the model does not run in bf16"


def fp16(device: str) -> None:
    """fp16, eager and compiled: loss scales, skips and parameters are those of `GradScaler`."""
    step = simple(fl.optim.sgd(0.1), fl.amp("fp16", init_scale=2.0**10, interval=3))
    given = batches(9, device)
    for i in (1, 6):  # their logits are beyond fp16
        given[i] = (given[i][0] * 1e5, given[i][1])
    for own in (step, fl.compile(step, backend=backend(device))):
        model, state = _model(step, device), started(step, smooth, device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=3)
        for i, batch in enumerate(given):
            before, (state, metrics) = state, own(state, batch)
            _classic(model, optimizer, batch, torch.autocast(device, torch.float16), scaler)
            skipped = float(metrics["skipped"])
            assert skipped == (i in (1, 6)), f"step {i + 1} reports skipped = {skipped}"
            if skipped:
                assert fl.tree_equal(before.params, state.params), "a skipped step moved"
            scale = float(state["amp"]["scale"])
            assert scale == scaler.get_scale(), f"step {i + 1}: the scale is {scale}"
        _same(state, model, "fp16", 1e-2, 2e-3)


def half_parameters(device: str) -> None:
    """Parameters in bf16 train, eager and compiled, and stay in bf16."""
    step = simple(fl.optim.adamw(1e-2))
    x, y = arrays(32)
    batch = (x.bfloat16().to(device), y.to(device))
    for own in (step, fl.compile(step, backend=backend(device))):
        state, losses = step.init(lambda: smooth().bfloat16()).to(device), []
        for _ in range(20):
            state, metrics = own(state, batch)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < 0.9 * losses[0], f"the loss went from {losses[0]} to {losses[-1]}"
        assert {p.dtype for p in state.params.values()} == {torch.bfloat16}


def _kinds(model: Any, batch: Any) -> Any:
    logits = model(batch[0])
    return logits.float().square().mean(), {"bf16": fl.Last(logits.dtype is torch.bfloat16)}


def _model(step: Any, device: str) -> nn.Module:
    return fl.to_module(started(step, smooth, device)).train()


def _classic(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    precision: Any = None,
    scaler: Any = None,
) -> None:
    """A step by hand."""
    optimizer.zero_grad()
    with precision or contextlib.nullcontext():
        found, _ = loss(model, batch)
    if scaler is None:
        found.backward()
        optimizer.step()
    else:
        scaler.scale(found).backward()
        scaler.step(optimizer)
        scaler.update()


def _same(state: fl.State, model: nn.Module, what: str, rtol: float, atol: float) -> None:
    for name, p in model.named_parameters():
        off = (state.params[name] - p.detach()).abs().max()
        close = torch.allclose(state.params[name], p.detach(), rtol=rtol, atol=atol)
        assert close, f"{what}: {name} is off by {float(off):.3g}"

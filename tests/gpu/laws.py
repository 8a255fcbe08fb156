"""The laws, on the device."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop import testing

from .problems import (
    Net,
    arrays,
    bad,
    batches,
    dropping,
    everything,
    loss,
    simple,
    smooth,
    started,
)

STEPS = {"simple": simple, "everything": everything}


def pure(device: str) -> None:
    """Law 1: a step changes nothing that it is given, nor the generators of random numbers."""
    for make in STEPS.values():
        step = make()
        state, (batch,) = started(step, Net, device), batches(1, device)
        before = _generator(device)
        testing.check_pure(step, state, batch)
        assert torch.equal(before, _generator(device)), "the device's generator has moved"


def repeatable(device: str) -> None:
    """Law 2: the same inputs give the same bits."""
    for make in STEPS.values():
        step = make()
        testing.check_repeatable(step, started(step, Net, device), *batches(1, device))


def accumulates(device: str) -> None:
    """Law 4: micro-batches have the gradient of the whole batch."""
    grad = fl.grad(loss)
    testing.check_accumulates(
        grad, started(grad, smooth, device), *batches(1, device, size=11), ks=(2, 3, 11)
    )


def resumes(device: str) -> None:
    """Law 8: a run that is stopped, saved, loaded and resumed has the bits of one that is not."""
    data = fl.data.prefetch(fl.Batches(arrays(30), batch_size=8, seed=3), device=device)
    for make in STEPS.values():
        step = make()
        testing.check_resumes(step, started(step, Net, device), data, steps=6, at=(2, 5))


def skips(device: str) -> None:
    """Law 10: a batch with a non-finite gradient changes nothing."""
    for make in STEPS.values():
        step = make()
        testing.check_skips(step, started(step, Net, device), bad(device))


def stable(device: str) -> None:
    """Law 11: a state keeps its structure, shapes, dtypes and devices."""
    for make in STEPS.values():
        step = make()
        state, (batch,) = started(step, Net, device), batches(1, device)
        testing.check_stable(step, state, batch)
        after, metrics = step(state, batch)
        places = {leaf.device.type for leaf in fl.tree_leaves((after.params, metrics))}
        assert places == {device}, f"parameters and metrics are on {places}"


def members(device: str) -> None:
    """A population: each member draws the dropout that it would draw alone."""
    step = simple()
    states = [step.init(dropping, seed=seed).to(device) for seed in range(2)]
    testing.check_vmaps(step, states, *batches(1, device), rtol=1e-3, atol=1e-4)


def checkpointed(device: str) -> None:
    """A checkpointed loss, computed again in the backward pass, draws from `fl.randomness`."""

    def noisy(model, batch, state):
        def scores(x):
            with fl.randomness(state, "noise"):
                return model(x + 0.1 * torch.randn_like(x))

        return loss(lambda x: checkpoint(scores, x, use_reentrant=False), batch)

    step = fl.pipe(noisy, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, (batch,) = started(step, smooth, device), batches(1, device)
    testing.check_repeatable(step, state, batch)
    testing.check_compiles(step, state, [batch], rtol=1e-3, atol=1e-4)


def _generator(device: str) -> torch.Tensor:
    if device == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state()

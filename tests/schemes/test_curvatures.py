"""Hessian products and sharpness against the whole Hessian by ``torch.func.hessian``."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import fnloop as fl
from tests.schemes.hessians import whole_hessian


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


@functools.cache  # before any vmap
def batch(n=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long()


@pytest.mark.parametrize("part", [[], [fl.accumulate(3)]], ids=["whole", "in parts"])
def test_products_and_sharpness_are_those_of_the_whole_hessian(part):
    stage = fl.pipe(loss, fl.grad, *part)
    state = stage.init(net, seed=0)
    vector = state.params.map_named(torch.sin)
    found = fl.schemes.hessian_product(stage, state, batch(), vector)
    hessian = whole_hessian(net(), state, batch())
    expected = hessian @ torch.cat([v.flatten() for v in vector.values()])
    torch.testing.assert_close(torch.cat([v.flatten() for v in found.values()]), expected)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    largest = eigenvalues[eigenvalues.abs().argmax()]
    torch.testing.assert_close(
        fl.schemes.sharpness(stage, state, batch(), steps=60), largest, rtol=1e-4, atol=0
    )


def test_it_changes_nothing_and_is_the_same_when_it_is_asked_again():
    stage = fl.grad(loss)
    state = stage.init(net, seed=0)
    before = fl.tree_map(torch.clone, state)
    first = fl.schemes.sharpness(stage, state, batch(), steps=3)
    assert torch.equal(first, fl.schemes.sharpness(stage, state, batch(), steps=3))
    assert fl.tree_equal(before, state)


def test_a_population_is_measured_at_once():
    stage = fl.grad(loss)
    x = batch()
    states = [stage.init(net, seed=seed) for seed in range(3)]
    stacked = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    together = torch.func.vmap(
        lambda state: fl.schemes.sharpness(stage, state, x, steps=5), randomness="different"
    )(stacked)
    alone = torch.stack([fl.schemes.sharpness(stage, s, batch(), steps=5) for s in states])
    torch.testing.assert_close(together, alone)


def test_errors():
    stage = fl.grad(loss)
    state = stage.init(net)
    with pytest.raises(ValueError, match=r"sharpness\(steps=\)"):
        fl.schemes.sharpness(stage, state, batch(), steps=0)
    sharded = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), fl.mesh())
    with pytest.raises(ValueError, match="hessian_product was given a stage that is sharded"):
        fl.schemes.hessian_product(sharded.inner, state, batch(), state.params)

"""SWAG's moments and samples against numpy; and its memory as that of any callback."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing

swag, sample = fl.schemes.swag, fl.schemes.swag_sample


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def data(n=40):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    return fl.Batches((x, x.prod(1, keepdim=True)), 8)


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.3)))


def vector(params):
    return torch.cat([p.flatten() for p in params.values()]).double().numpy()


def trained(steps=11, rank=4):
    """A run; and the weights that it passed through, one row a step."""
    passed = []
    note = fl.effect(lambda state, metrics: passed.append(vector(state.params)))
    state, _ = fl.fit(
        STEP, STEP.init(net, seed=0), data(), steps=steps, callbacks=[swag(rank), note]
    )
    return state, np.stack(passed)


def test_its_moments_are_those_of_numpy():
    state, passed = trained()
    found = state["swag"]
    assert int(found["count"]) == 11
    np.testing.assert_allclose(vector(found["mean"]), passed.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vector(found["variance"]), passed.var(0), rtol=1e-4, atol=1e-9)
    for i in range(7, 11):  # the last four, each from the mean up to then
        deviation = passed[i] - passed[: i + 1].mean(0)
        found_here = vector(found["deviations"][str(i % 4)])
        np.testing.assert_allclose(found_here, deviation, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [11, 3])  # more than are kept, and fewer
def test_samples_have_the_covariance_of_the_paper(steps):
    state, passed = trained(steps)
    k = min(steps, 4)
    columns = np.stack([passed[i] - passed[: i + 1].mean(0) for i in range(steps - k, steps)], 1)
    expected = (np.diag(passed.var(0)) + columns @ columns.T / (k - 1)) / 2
    drawn = np.stack([vector(sample(state, seed).params) for seed in range(3000)])
    size = np.sqrt(np.diag(expected).max())
    np.testing.assert_allclose(drawn.mean(0), passed.mean(0), atol=0.08 * size)
    np.testing.assert_allclose(np.cov(drawn.T), expected, rtol=0.1, atol=0.06 * size**2)


def test_a_sample_is_evaluated_and_repeated_and_the_state_stays():
    state, _ = trained()
    before = fl.tree_map(torch.clone, state)
    one, again, other = sample(state, 3), sample(state, 3), sample(state, 4)
    assert fl.tree_equal(one, again) and not fl.tree_equal(one, other)
    assert fl.tree_equal(state, before)
    assert fl.evaluate(loss, one, data())["loss"] < 10
    assert fl.to_module(one)(torch.ones(1, 2)).shape == (1, 1)


def test_laws_1_2_3_and_11_and_resuming():
    state, metrics = STEP(STEP.init(net, seed=0), next(iter(data())))
    callback = swag(3)
    state = callback.init(state, metrics)
    assert fl.tree_equal(callback.init(state, metrics), state)
    testing.check_pure(callback, state, metrics)
    testing.check_repeatable(callback, state, metrics)
    testing.check_stable(callback, state, metrics)
    testing.check_resumes(
        STEP, STEP.init(net, seed=0), data(), steps=8, callbacks=lambda: [fl.every(2, swag(3))]
    )


def test_members_of_a_population_have_their_own_and_frozen_ones_keep_it():
    many = fl.ensemble(STEP, 2)
    state = many.init(net, seed=0)
    together, _ = fl.fit(many, state, data(), steps=6, callbacks=[swag(3)])
    for i in range(2):
        alone, _ = fl.fit(STEP, fl.member(state, i), data(), steps=6, callbacks=[swag(3)])
        own = fl.member(together, i)
        for name, mean in alone["swag"]["mean"].items():
            torch.testing.assert_close(own["swag"]["mean"][name], mean)
        drawn = fl.member(sample(together, 5), i)
        assert fl.tree_equal(drawn.params, sample(own, 5).params)
    frozen = together.put("population", {"active": torch.tensor([True, False])})
    after, _ = swag(3)(frozen, {})
    assert after["swag"]["count"].tolist() == [7, 6]


def test_errors():
    state = STEP.init(net, seed=0)
    with pytest.raises(ValueError, match=r"no slot 'swag' in the state; it has: update\. The usua"):
        sample(state)
    with pytest.raises(ValueError, match="at least two times, and swag has taken in 1"):
        sample(trained(1)[0])
    with pytest.raises(ValueError, match=r"swag\(rank\)"):
        swag(1)

"""An actor and a critic that balance a pole."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop import testing

pytest.importorskip("matplotlib")


@pytest.fixture
def poles(example):
    return example("actor_critic")


def test_games_last_longer_and_a_stop_in_mid_game_leaves_no_trace(poles, tmp_path, run):
    whole, half = (poles.recipe(epochs=5, folder=tmp_path / name) for name in "ab")
    state, history = run(whole, epochs=5)
    assert history["val/lasted"][-1] > 5 * history["val/random"][-1]
    assert 20 < history["val/random"][-1] < 26  # as is known of CartPole: 22
    run(half, steps=50)  # in the third epoch
    resumed, _ = run(half, epochs=5, resume=tmp_path / "b")
    assert resumed == state
    assert (resumed["rollout"]["played"] > 0).all()
    for name in "ab":
        assert (tmp_path / name / "learning.png").stat().st_size > 1000
    assert half.callbacks[1].rows == whole.callbacks[1].rows and len(half.callbacks[1].rows) == 5


def test_energy_is_conserved_where_nobody_pushes(poles):
    """The equations of motion against the energy of a cart of 1 kg and a rod of 0.1 kg and 1 m."""
    where = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    _, speed, angle, turning = where.unbind(-1)
    swing = 0.1 * 0.5 * speed * turning * angle.cos()
    moving = 0.5 * 1.1 * speed**2 + swing + 0.5 * 0.1 * (0.5**2 * 4 / 3) * turning**2
    energy = moving + 0.1 * 9.8 * 0.5 * angle.cos()
    (slope,) = torch.autograd.grad(energy.sum(), where)
    force = torch.linspace(-10, 10, 50, dtype=torch.float64)
    for push in (torch.zeros(50, dtype=torch.float64), force):
        of_cart, of_pole = poles.acceleration(where.detach(), push)
        change = torch.stack([speed, of_cart, turning, of_pole], -1)
        torch.testing.assert_close((slope * change).sum(-1), push * speed)  # power


def test_what_the_critic_should_have_said_is_what_came(poles):
    """With the trace one, of a game that ends: rewards to its end, by their definition."""
    seen: list[Any] = []

    def look(state, rows):
        seen.append({name: rows[name].unflatten(0, (60, 16)) for name in rows})
        return state, {}

    step = poles.Rollout(fl.stage(look, "step"), moves=60, players=16, trace=1.0)
    starts = poles.places(16, seed=2)
    step(step.init(lambda: poles.Players(8), seed=0), starts)
    (rows,) = seen
    checked = 0
    for player in range(16):
        where = rows["where"][:, player]
        new = [i for i in range(60) if torch.equal(where[i], starts[player])]
        assert new[0] == 0
        for first, end in itertools.pairwise(new):
            for i in range(first, end):
                expected = sum(0.01 * 0.99**k for k in range(end - i))
                assert float(rows["value"][i, player]) == pytest.approx(expected, abs=1e-5)
                if i + 1 < end:
                    moved = poles.move(where[i], rows["action"][i, player])
                    torch.testing.assert_close(moved, where[i + 1])
                    assert not poles.fallen(where[i + 1])
                checked += 1
    assert checked > 300


def test_the_step_keeps_the_laws(poles):
    recipe = poles.recipe(moves=2, players=4, width=4)
    state = recipe.step.init(recipe.model, seed=0)
    testing.check_pure(recipe.step, state, poles.places(4, seed=3))
    testing.check_compiles(recipe.step, state, poles.places(4, seed=3), backend="aot_eager")
    states = [recipe.step.init(recipe.model, seed=seed) for seed in range(2)]
    testing.check_vmaps(recipe.step, states, poles.places(4, seed=3))

"""A GAN that draws digits."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def gan(example):
    return example("gan")


def test_digits_get_closer_to_real_ones_and_a_stop_in_mid_run_leaves_no_trace(gan, tmp_path, run):
    whole, half = (gan.recipe(epochs=12, width=32, folder=tmp_path / name) for name in "ab")
    state, history = run(whole, epochs=12)
    untrained = gan.distance(gan.Players(32), real(gan))["distance"]
    assert history["val/distance"][-1] < 0.7 * untrained.item()
    assert (tmp_path / "a" / "samples.png").stat().st_size > 1000
    run(half, steps=100)  # in the fifth epoch
    resumed, _ = run(half, epochs=12, resume=tmp_path / "b")
    assert resumed == state
    assert int(state["generator/step"]) == int(state.step) == 12 * 22


def test_both_rates_reach_zero_with_the_last_round(gan, tmp_path):
    r = gan.recipe(epochs=3, every=3, width=8, folder=tmp_path / "run")
    _, history = fl.fit(r.step, r.step.init(r.model), r.data, epochs=3)
    rates = [history[f"{part}/adam.lr"][-1] for part in ("discriminator", "generator")]
    assert rates == pytest.approx([1e-3 / 66, 1e-3 / 22])


def test_the_distance_is_zero_between_digits_of_a_kind(gan):
    x = real(gan)
    assert abs(float(gan.discrepancy(x[:180], x[180:]))) < 0.01
    assert float(gan.discrepancy(x, torch.rand(360, 64))) > 0.5


def real(gan):
    return next(iter(gan.digits(64).validate))

"""A learned schedule on digits: its derivative against differences, and that it gets better."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def learned(example, monkeypatch):
    found = example("learned_schedule")
    beginning = found.beginning
    beginning.cache_clear()
    monkeypatch.setattr(found, "PEAKS", torch.tensor([0.03, 0.3, 30.0]))
    monkeypatch.setattr(found, "SWEPT", 2)
    monkeypatch.setattr(found, "ROUNDS", ((0, 1), (2, 3)))
    yield found
    beginning.cache_clear()


def test_the_derivative_of_the_outer_loss_against_differences(learned, monkeypatch):
    parts, plain = learned.digits(), learned.network
    double = tuple([(x.double(), y) for x, y in parts])
    monkeypatch.setattr(learned, "digits", lambda: double)
    monkeypatch.setattr(learned, "network", lambda: plain().double())
    monkeypatch.setattr(learned, "STEPS", 12)
    way = torch.cos(torch.arange(11.0, dtype=torch.float64))
    learned.beginning(0)

    def along(t):
        logs = torch.full((11,), 0.3, dtype=torch.float64).log() + t * way
        return learned.after(learned.Knots(logs, 12), 0)

    zero, h = torch.zeros((), dtype=torch.float64), 1e-4
    expected = (along(h) - along(-h)) / (2 * h)
    assert abs(expected) > 1e-3
    torch.testing.assert_close(torch.func.grad(along)(zero), expected, rtol=1e-5, atol=0)


def test_knots_are_joined_by_lines_of_the_logarithm(learned):
    schedule = learned.Knots(torch.tensor([1.0, 3.0, 2.0]), steps=5)
    values = [float(schedule(step)) for step in range(5)]
    assert values == pytest.approx(torch.tensor([1.0, 2.0, 3.0, 2.5, 2.0]).exp().tolist())
    steps = torch.arange(5)
    together = torch.func.vmap(schedule)(steps)
    assert together.tolist() == pytest.approx(values)


def test_a_few_iterations_lower_the_loss_and_the_picture_is_drawn(
    learned, monkeypatch, tmp_path, capsys
):
    _, losses = learned.learn(8)
    assert losses[-1] < 0.9 * losses[0]
    path = tmp_path / "found.png"
    given = ["learned_schedule.py", "--iterations=1", "--networks=2", f"--picture={path}"]
    monkeypatch.setattr(sys, "argv", given)
    learned.main()
    assert path.stat().st_size > 1000
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-3:]] == ["linear", "cosine", "learned"]

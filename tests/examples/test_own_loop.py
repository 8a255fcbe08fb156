"""Digits with a loop of one's own."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")


@pytest.fixture
def own_loop(example):
    return example("own_loop")


@pytest.mark.lightning("X1")
def test_it_goes_on_as_if_it_had_not_been_stopped(own_loop, tmp_path):
    straight = own_loop.train(tmp_path / "a", epochs=5)
    own_loop.train(tmp_path / "b", epochs=3)
    assert own_loop.train(tmp_path / "b", epochs=5) == straight
    assert straight["accuracy"] > 0.95


def test_it_stops_when_nothing_improves(own_loop, tmp_path, capsys):
    own_loop.train(tmp_path, epochs=100, patience=1)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert 1 < len(losses) < 100
    assert losses[-1] >= losses[-2]

"""A network that solves the heat equation."""

from __future__ import annotations

import sys

import pytest
import torch

import fnloop as fl


@pytest.fixture
def pinn(example):
    return example("pinn")


def test_the_solution_meets_the_equation_and_the_network_is_compared_with_it(pinn):
    off, parts = pinn.loss(pinn.solution, pinn.chosen(200))
    assert off.value().item() < 1e-24 and parts["equation"].value().item() < 1e-24
    cold = fl.grad(pinn.loss).init(lambda: pinn.Network(4))
    cold = cold.replace(params=cold.params.zeros())
    assert pinn.error(cold) == pytest.approx(1.0)


def test_l_bfgs_gets_closer_to_the_solution_than_adam(pinn):
    first, last, (at, losses) = pinn.train(adam=150, newton=12, points=300, width=12)
    assert pinn.error(last) < 0.3 * pinn.error(first)
    assert losses[-1] < 0.1 * losses[149] and at == sorted(at)
    assert int(last.step) == 162 and int(first.step) == 150
    by_adam = pinn.train(adam=at[-1], newton=0, points=300, width=12)[1]
    assert pinn.error(last) < pinn.error(by_adam)


def test_the_script_draws_what_it_found(pinn, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["pinn.py", "--smoke", "--folder", str(tmp_path)])
    pinn.main()
    assert (tmp_path / "solution.png").stat().st_size > 10_000
    assert "evaluations of L-BFGS: loss" in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float32

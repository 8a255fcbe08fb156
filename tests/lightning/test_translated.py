"""Optimizers of torch, translated, against themselves."""

from __future__ import annotations

import pytest
import torch

from fnloop.lightning.configured import configured
from fnloop.lightning.translated import optimizer_of
from fnloop.values.tensors import Tensors

SETTINGS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True},
    "AdamW": {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-6, "maximize": True},
    "RMSprop": {"lr": 0.1, "centered": True, "momentum": 0.5},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    "NAdam": {"lr": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1},
    "RAdam": {"lr": 0.1, "weight_decay": 0.1},
    "Adamax": {"lr": 0.1},
    "Adadelta": {"lr": 0.5, "rho": 0.8},
    "Rprop": {"lr": 0.1, "etas": (0.6, 1.1)},
    "ASGD": {"lr": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_computes_what_torchs_does(name):
    gradients = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    w, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3))
    groups = [{"params": [w]}, {"params": [b], "lr": 0.05}]
    theirs = getattr(torch.optim, name)(groups, **SETTINGS[name])
    (given,) = configured(theirs, "Model")
    own = optimizer_of(given, {id(w): "w", id(b): "b"})
    assert own.names == ("w", "b")
    params = Tensors({"w": w.detach().clone(), "b": b.detach().clone()})
    memory = own.optimizer.init(params)
    for step, (gw, gb) in enumerate(gradients):
        w.grad, b.grad = gw.clone(), gb.clone()
        theirs.step()
        grads = Tensors({"w": gw, "b": gb})
        updates, memory = own.optimizer.update(grads, memory, params, step)
        params = params.add(updates)
    torch.testing.assert_close(params["w"], w.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(params["b"], b.detach(), rtol=1e-5, atol=1e-6)


def test_groups_have_the_names_that_they_are_given():
    w, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [w], "name": "head"}, {"params": [b], "name": "body", "lr": 1e-3}]
    (given,) = configured(torch.optim.AdamW(groups, lr=0.1), "Model")
    own = optimizer_of(given, {id(w): "w", id(b): "b"})
    rates = {n: v for n, v in own.optimizer.hyperparameters().items() if n.endswith(".lr")}
    assert rates == {"head.adamw.lr": 0.1, "body.adamw.lr": 1e-3}


def test_one_that_trains_nothing_says_so():
    (given,) = configured(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), "Model")
    with pytest.raises(ValueError, match=r"SGD in configure_optimizers has no parameter"):
        optimizer_of(given, {})


def test_one_with_a_closure_says_what_to_use():
    weight = torch.nn.Parameter(torch.ones(1))
    (given,) = configured(torch.optim.LBFGS([weight]), "Model")
    with pytest.raises(TypeError, match=r"fl\.optim\.lbfgs"):
        optimizer_of(given, {id(weight): "w"})


def test_keys_of_ones_own_in_a_group_are_carried_along():
    w, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [w], "lr": 0.05, "lr_scale": 0.5}, {"params": [b], "lr_scale": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    torch.optim.swa_utils.SWALR(optimizer, 0.01)
    (given,) = configured(optimizer, "Model")
    rates = optimizer_of(given, {id(w): "w", id(b): "b"}).optimizer.hyperparameters()
    assert {n: v for n, v in rates.items() if n.endswith(".lr")} == {
        "group0.sgd.lr": 0.05,
        "group1.sgd.lr": 0.1,
    }

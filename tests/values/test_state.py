"""The state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.start import start


class Tied(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.drop = nn.Dropout(p)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("lost", torch.ones(2), persistent=False)


@pytest.mark.lightning("Z4")
def test_every_leaf_is_a_tensor_and_tied_ones_stand_once():
    state = start(Tied())
    assert all(isinstance(leaf, torch.Tensor) for leaf in fl.tree_leaves(state))
    assert list(state.params) == ["a.weight", "a.bias", "b.bias"]
    assert list(state.buffers) == ["kept", "lost"]
    assert state.cursor.tolist() == [0, 0, 0] and state.cursor.dtype == torch.int64


def test_it_owns_its_tensors():
    model = Tied()
    state = start(model)
    with torch.no_grad():
        model.a.weight.zero_()
    assert state.params["a.weight"].abs().sum() > 0


@pytest.mark.lightning("H13")
def test_to_module_gives_a_module_of_its_own():
    model = Tied().eval()
    state = start(model)
    twin = fl.to_module(state)
    assert type(twin) is Tied and twin.b.weight is twin.a.weight and not twin.training
    assert set(twin.state_dict()) == set(model.state_dict())  # "lost" is not persistent
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
    with torch.no_grad():
        twin.a.weight.zero_()
    assert state.params["a.weight"].abs().sum() > 0
    assert start(twin).skeleton == state.skeleton


def test_skeletons_compare_by_what_they_are():
    assert start(Tied()).skeleton == start(Tied()).skeleton
    assert hash(start(Tied()).skeleton) == hash(start(Tied()).skeleton)
    assert start(Tied(p=0.1)).skeleton != start(Tied(p=0.2)).skeleton
    frozen = Tied()
    frozen.a.bias.requires_grad_(False)
    assert start(frozen).skeleton != start(Tied()).skeleton


def test_the_skeleton_keeps_no_tensor_alive():
    state = start(Tied())
    fl.grad(lambda m, x: m.a(x).mean())(state, torch.ones(2, 3))
    assert all(p.is_meta for p in state.skeleton.module.parameters())
    assert copy.deepcopy(state).skeleton is state.skeleton


@pytest.mark.lightning("M9")
def test_replace_and_slots():
    state = start(Tied()).put("x", {"y": torch.ones(1)})
    assert state["x"]["y"] == 1
    with pytest.raises(TypeError, match="no field parms"):
        state.replace(parms={})
    with pytest.raises(KeyError, match="no slot 'ema'; it has: x"):
        state["ema"]


def test_nothing_of_a_call_stays_when_a_loss_fails():
    def bad(model, x):
        raise RuntimeError("boom")

    state = start(Tied())
    with pytest.raises(RuntimeError, match="boom"):
        fl.grad(bad)(state, torch.ones(2, 3))
    assert all(p.is_meta for p in state.skeleton.module.parameters())
    assert fl.training() is True


def test_calls_nest():
    inner = fl.pipe(lambda m, x: m.a(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = inner.init(Tied())
    expected, _ = inner(state, torch.ones(2, 3))
    seen = []

    def outer(model, x):
        before = model.a.weight
        seen.append(inner(state, x)[0])
        assert model.a.weight is before and model.training
        return model.a(x).mean()

    fl.grad(outer)(state, torch.ones(2, 3))
    assert seen[0] == expected


def test_a_function_is_applied_to_the_model_in_evaluation_mode_with_derivatives():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    state = start(model, seed=0)
    x, random = torch.ones(3, 2), torch.get_rng_state()

    def total(params):
        return state.replace(params=params).apply(lambda m: {"sum": m(x).sum(), "mode": m.training})

    found = total(state.params)
    assert found == {"sum": model.eval()(x).sum(), "mode": False}
    gradient = torch.func.grad(lambda params: total(params)["sum"])(state.params)
    assert gradient["0.bias"].abs().min() > 0.5
    draws = [state.apply(lambda m: torch.rand(2)) for _ in range(2)]
    assert torch.equal(*draws) and torch.equal(torch.get_rng_state(), random)

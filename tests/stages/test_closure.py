"""Tensors that a loss brings along from outside."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.stages.closure import closed_over

GLOBAL = torch.tensor(3.0)
GLOBALS = {"weight": torch.tensor(4.0)}


def by_global(model, batch):
    return GLOBAL * model(batch)


def calls_another(model, batch):
    return by_global(model, batch)


def ids(tensors):
    return {id(tensor) for tensor in tensors}


def test_cells_defaults_globals_partials_containers_and_functions_are_searched():
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    table = {"weights": [a, (b,)]}

    def inner(model):
        return c * model

    def loss(model, batch, *, scale=b):
        return table["weights"][0] * inner(model) * scale

    assert ids(closed_over(loss)) == ids((a, b, c))
    assert ids(closed_over(by_global)) == ids((GLOBAL,))
    assert ids(closed_over(calls_another)) == ids((GLOBAL,))
    assert ids(closed_over(functools.partial(lambda model, batch, w: w, w=a))) == ids((a,))


def test_fields_of_a_tree_and_the_object_of_a_method():
    @fl.tree
    class Weighted:
        weight: torch.Tensor

        def __call__(self, model, batch):
            return self.weight * model(batch)

        def loss(self, model, batch):
            return self(model, batch)

    weighted = Weighted(torch.tensor(2.0))
    assert ids(closed_over(weighted)) == ids((weighted.weight,))
    assert ids(closed_over(weighted.loss)) == ids((weighted.weight,))


def test_attributes_of_an_object_and_containers_in_globals():
    class Weighted:
        def __init__(self, weight):
            self.options = types.SimpleNamespace(weight=weight)

        def __call__(self, model, batch):
            return GLOBALS["weight"] * self.options.weight * model(batch)

    weighted = Weighted(torch.tensor(2.0))
    expected = ids((weighted.options.weight, GLOBALS["weight"]))
    assert ids(closed_over(weighted)) == ids(closed_over(weighted.__call__)) == expected


def test_the_derivative_by_a_slot_of_the_state():
    factor = torch.tensor(2.0, requires_grad=True)

    def loss(model, batch, state):
        return state["factor"] * model(batch).mean()

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(2, 1, bias=False))
    state = state.replace(slots={**state.slots, "factor": factor})
    after, _ = step(state, torch.ones(3, 2))
    (slope,) = torch.autograd.grad(after.params["weight"].sum(), factor)
    assert slope.item() == pytest.approx(-0.2)  # each of two weights moves by -0.1 * factor


def test_parameters_of_modules_are_left_out():
    teacher = nn.Linear(2, 1)
    weight = teacher.weight
    assert closed_over(lambda model, batch: teacher(batch) + weight) == ()


TEACHER = nn.Linear(2, 1)


def test_parameters_of_modules_are_found_if_asked_for():
    teacher = nn.Sequential(nn.Linear(2, 1))
    found = closed_over(lambda model, batch: teacher(batch) + TEACHER(batch), modules=True)
    assert ids(found) == ids((*teacher.parameters(), *TEACHER.parameters()))


def test_a_cell_that_is_empty_and_a_function_that_calls_itself():
    def loss(model, batch):
        return loss(model, later)

    assert closed_over(loss) == ()
    later = torch.ones(())
    assert ids(closed_over(loss)) == ids((later,))


def test_a_tensor_made_inside_the_loss_keeps_no_graph():
    def penalised(model, batch):
        x = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean()

    step = fl.pipe(penalised, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
    after, metrics = step(state, torch.ones(3, 2))
    assert after.params.plain and not metrics["loss"].value().requires_grad

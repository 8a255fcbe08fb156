"""Tensors from outside of a compiled step: another in the place of one is found."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

X = torch.arange(12.0).reshape(4, 3) / 6 - 1
HELD: dict[str, torch.Tensor] = {}
WEIGHT = torch.ones(2)


class Bank(nn.Module):
    """A loss with memory that is assigned."""

    def __init__(self, kind):
        super().__init__()
        if kind == "buffer":
            self.register_buffer("bank", torch.ones(2))
        else:
            self.bank = torch.ones(2)

    def forward(self, model, batch):
        return (self.bank * model(batch)).square().mean()


class Plain:
    def __init__(self):
        self.bank = torch.ones(2)

    def __call__(self, model, batch):
        return (self.bank * model(batch)).square().mean()


def places():
    """Losses with a tensor from outside, and how another is put in its place."""
    weight = torch.ones(2)

    def by_cell(model, batch):
        return (weight * model(batch)).square().mean()

    def set_cell(value):
        nonlocal weight
        weight = value

    def by_global(model, batch):
        return (WEIGHT * model(batch)).square().mean()

    def by_entry(model, batch):
        return (HELD["weight"] * model(batch)).square().mean()

    def by_method(criterion):
        return lambda model, batch: criterion(model, batch)

    HELD["weight"] = torch.ones(2)
    globals()["WEIGHT"] = torch.ones(2)
    plain, module, buffer = Plain(), Bank("attribute"), Bank("buffer")
    return {
        "cell": (by_cell, set_cell),
        "global": (by_global, lambda value: globals().update(WEIGHT=value)),
        "entry": (by_entry, lambda value: HELD.update(weight=value)),
        "attribute": (plain, lambda value: setattr(plain, "bank", value)),
        "module": (by_method(module), lambda value: setattr(module, "bank", value)),
        "buffer": (by_method(buffer), lambda value: setattr(buffer, "bank", value)),
    }


def steps(loss, **options):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return step, fl.compile(step, backend="aot_eager", **options)


def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def same(a, b):
    for name in a.params:
        torch.testing.assert_close(a.params[name], b.params[name])


@pytest.mark.parametrize("place", list(places()))
def test_another_tensor_between_runs_is_used(place):
    loss, put = places()[place]
    step, fast = steps(loss)
    eager = compiled = step.init(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (1.0, 2.0, 3.0):
            put(torch.full((2,), value))
            eager, _ = fl.fit(step, eager, [X] * 3, epochs=1, progress=False)
            compiled, _ = fl.fit(fast, compiled, [X] * 3, epochs=1, progress=False)
            same(eager, compiled)
    assert fast.graphs == 3


def test_another_tensor_in_a_loop_of_ones_own_is_told_and_used_from_the_next_look():
    loss, put = places()["cell"]
    step, fast = steps(loss)
    state = step.init(model)
    for _ in range(2):
        fast(state, X)
    put(torch.full((2,), 5.0))
    fast(state, X)
    with pytest.warns(UserWarning, match=r"recorded anew; calls before this one may have used"):
        after, _ = fast(state, X)
    same(after, step(state, X)[0])


def test_what_the_graph_does_not_contain_may_change():
    unused = [torch.ones(2)]

    def loss(model, batch):
        _ = unused
        return model(batch).square().mean()

    _, fast = steps(loss)
    state = fast.init(model)
    for _ in range(8):
        state, _ = fast(state, X)
        unused[0] = torch.ones(2)
    assert fast.graphs == 1


def test_a_teacher_trained_in_place_takes_no_other_graph_and_a_student_is_a_new_teacher():
    teacher = model().requires_grad_(False)

    def loss(student, batch):
        return F.mse_loss(student(batch), teacher(batch) + 1)

    step, fast = steps(loss)
    eager = compiled = step.init(model)
    for number in (1, 2):
        for _ in range(2):
            eager, _ = fl.fit(step, eager, [X] * 3, epochs=1, progress=False)
            compiled, _ = fl.fit(fast, compiled, [X] * 3, epochs=1, progress=False)
            same(eager, compiled)
            teacher.load_state_dict(fl.to_module(eager).state_dict())
        assert fast.graphs == number
        old, teacher = weakref.ref(teacher), fl.to_module(eager).requires_grad_(False)
        gc.collect()
        assert old() is None  # the step holds no module

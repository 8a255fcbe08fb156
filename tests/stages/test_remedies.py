"""Errors of torch that a batch causes come with a remedy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl

F = nn.functional
X, Y = torch.ones(8, 3), torch.zeros(8, 1)
CLASSES = torch.zeros(8, dtype=torch.int64)


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def bce(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def told(call) -> str:
    with pytest.raises(Exception) as error:
        call()
    return "\n".join(getattr(error.value, "__notes__", ()))


LINEAR, NORM = nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
CASES = {
    "float64": (mse, LINEAR, (X.double(), Y), r"batch/0 is float64, .*\.float\(\)"),
    "float16": (mse, LINEAR, (X.half(), Y), "batch/0 is float16"),
    "images": (mse, LINEAR, (X.byte(), Y), r"batch/0 is uint8.*x\.float\(\) / 255"),
    "integers": (mse, LINEAR, (X.long(), Y), r"batch/0 is int64; a layer takes floats"),
    "array": (mse, LINEAR, (X.numpy(), Y), r"batch/0 is a NumPy array.*fl\.Batches"),
    "device": (mse, LINEAR, (X.to("meta"), Y), r'batch/0 is on meta.*device="cpu"'),
    "norm": (mse, NORM, (X[:1], Y[:1]), r"BatchNorm divides by.*drop_last=True"),
    "list": (mse, LINEAR, [(X, Y), (X, Y)], r"fl\.data\.Micro"),
    "group": (
        mse,
        LINEAR,
        fl.data.Micro(((X, Y), (X, Y))),
        r"accumulate\(k\).*data\.group",
    ),
    "class int32": (cross_entropy, nn.Linear(3, 5), (X, CLASSES.int()), r"y\.long\(\)"),
    "class float": (cross_entropy, nn.Linear(3, 5), (X, CLASSES.float()), r"y\.long\(\)"),
    "class [N, 1]": (cross_entropy, nn.Linear(3, 5), (X, CLASSES[:, None]), r"y\.squeeze\(1\)"),
    "class 7 of 5": (cross_entropy, nn.Linear(3, 5), (X, CLASSES + 7), "from 0 to n - 1"),
    "bce of classes": (bce, LINEAR, (X, CLASSES[:, None]), r"y\.float\(\)"),
    "bce [N]": (bce, LINEAR, (X, Y[:, 0]), r"squeeze\(1\)"),
    "tokens": (mse, nn.Embedding(9, 1), (X[:, 0], Y), r"numbers of tokens: x\.long\(\)"),
    "float64 images": (mse, nn.Conv1d(8, 1, 1), (X[None].double(), X[:1, None]), "is float64"),
    "uint8 images": (mse, nn.Conv1d(8, 1, 1), (X[None].byte(), X[:1, None]), "is uint8"),
    "images not flat": (mse, LINEAR, (torch.ones(8, 1, 2, 2), Y), r"x\.flatten\(1\)"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["step", "fit", "evaluate"])
def test_the_remedy_is_in_the_notes(case: str, how: str) -> None:
    loss, model, batch, expected = CASES[case]
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(model)
    calls = {
        "step": lambda: step(state, batch),
        "fit": lambda: fl.fit(step, state, [batch], epochs=1),
        "evaluate": lambda: fl.evaluate(loss, state, [batch]),
    }
    if case == "device" and how == "fit":  # a meta tensor has no values to take a digest of
        return
    if case == "norm" and how == "evaluate":  # which uses the running statistics
        assert calls[how]()["loss"] >= 0
        return
    notes = told(calls[how])
    assert re.search(expected, notes), notes


def test_numpys_default_reaches_a_model_through_batches() -> None:
    data = fl.Batches((np.ones((8, 3)), np.ones((8, 1))), 4)
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)))
    assert "NumPy makes float64" in told(lambda: fl.fit(step, step.init(LINEAR), data, epochs=1))


def test_a_compiled_step_says_it_too() -> None:
    step = fl.compile(fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1))), backend="aot_eager")
    assert "batch/0 is float64" in told(lambda: step(step.init(LINEAR), (X.double(), Y)))


def test_an_error_that_says_enough_gets_no_remedy() -> None:
    def wrong(model, batch):
        raise KeyError("pixels")

    step = fl.pipe(wrong, fl.grad)
    (note,) = told(lambda: step(step.init(LINEAR), (X.double(), Y))).splitlines()
    assert "this happened in" in note


def test_a_leaf_that_is_not_to_blame_is_not_named() -> None:
    def mixed(model, batch):
        return F.cross_entropy(model(batch[0]) @ torch.ones(5, 5).half(), batch[1])

    step = fl.pipe(mixed, fl.grad)
    notes = told(lambda: step(step.init(nn.Linear(3, 5)), (X, CLASSES)))
    assert "batch/" not in notes and "this happened in mixed" in notes


@pytest.mark.parametrize("compiled", [False, True])
def test_torchs_warning_of_a_broadcast_loss_is_not_lost(compiled: bool) -> None:
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    with pytest.warns(UserWarning, match="Using a target size"):
        fl.fit(step, step.init(LINEAR), [(X, Y[:, 0])], epochs=1)


def penalty(model, batch, enabled=True):
    with torch.set_grad_enabled(enabled or torch.is_grad_enabled()):
        x = batch[0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean()


def backward(model, batch):
    model(batch[0]).sum().backward()


@pytest.mark.parametrize("loss", [lambda m, b: penalty(m, b, enabled=False), backward])
def test_evaluation_without_gradients_is_explained(loss):
    state = fl.grad(mse).init(LINEAR)
    for call in (fl.evaluate, lambda *given: list(fl.predict(*given))):
        notes = told(lambda call=call: call(loss, state, [(X, Y)]))
        assert re.search(r"runs without gradients.*'with torch\.enable_grad\(\):'", notes)


def test_a_gradient_penalty_is_trained_and_evaluated():
    step = fl.pipe(penalty, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, metrics = step(step.init(LINEAR), (X, Y))
    assert float(metrics["loss"]) == pytest.approx(penalty(LINEAR, (X, Y)).item())
    model = fl.to_module(state)
    assert fl.evaluate(penalty, state, [(X, Y)])["loss"] == pytest.approx(
        penalty(model, (X, Y)).item()
    )


def test_a_loss_without_gradients_in_training_is_not_evaluation():
    def cut(model, batch):
        return torch.autograd.grad(model(batch[0]).detach().sum(), batch[0])[0].mean()

    step = fl.pipe(cut, fl.grad)
    assert "Evaluation" not in told(lambda: step(step.init(LINEAR), (X, Y)))

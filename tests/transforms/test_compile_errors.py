"""What cannot be one graph is an error with the line and a way out."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def compiled(loss, **options):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return fl.compile(step, backend="aot_eager", **options), step.init(nn.Linear(4, 2))


def asks_item(model, batch):
    return mse(model, batch) * batch[0].sum().item()


def asks_float(model, batch):
    return mse(model, batch) * float(batch[0].sum())


def branches(model, batch):
    error = mse(model, batch)
    return error if error > 1 else 2 * error


def formats(model, batch):
    error = mse(model, batch)
    assert f"{error:.3f}"
    return error


def lists(model, batch):
    return mse(model, batch) * sum(batch[1].sum(1).tolist())


def asserts_finite(model, batch):
    error = mse(model, batch)
    assert torch.isfinite(error)
    return error


def picks(model, batch):
    x, y = batch
    return (model(x) - y)[x[:, 0] > 0].square().mean()


def counts(model, batch):
    return mse(model, batch) * len(torch.unique(batch[0]))


def leaves_torch(model, batch):
    return mse(model, batch) * float(np.abs(batch[0].numpy()).sum())


UNRECORDABLE = {
    asks_item: "a value of a tensor is asked for",
    asks_float: "a value of a tensor is asked for",
    branches: "a value of a tensor is asked for",
    formats: "a value of a tensor is asked for",
    lists: "a value of a tensor is asked for",
    asserts_finite: "a value of a tensor is asked for",
    picks: "the shape of a result depends on values",
    counts: "the shape of a result depends on values",
    leaves_torch: "a tensor is taken out of PyTorch",
}


@pytest.mark.parametrize("loss", UNRECORDABLE, ids=lambda loss: loss.__name__)
def test_the_message_names_the_line_and_the_function(loss, caplog):
    step, state = compiled(loss)
    with pytest.raises(fl.CompileError, match=UNRECORDABLE[loss]) as caught:
        step(state, batch())
    message = str(caught.value)
    place = rf"test_compile_errors\.py, line \d+, in {loss.__name__}: \S"
    assert re.search(place, message), message
    assert "Without fl.compile the step runs as it is." in message
    assert any(loss.__name__ in note for note in caught.value.__notes__)
    assert not [r for r in caplog.records if r.name.startswith("torch._subclasses")]
    step.inner(state, batch())


def test_after_an_error_the_step_still_runs():
    wrong = [True]

    def loss(model, batch):
        return mse(model, batch) * (batch[0].sum().item() if wrong else 1.0)

    step, state = compiled(loss)
    with pytest.raises(fl.CompileError):
        step(state, batch())
    assert step.graphs == 0
    wrong.clear()
    assert int(step(state, batch())[0].step) == 1


def test_a_users_own_error_is_left_as_it_is(caplog):
    def loss(model, batch):
        raise KeyError("mine")

    step, state = compiled(loss)
    with pytest.raises(KeyError, match="mine"):
        step(state, batch())
    step, state = compiled(mse)
    with pytest.raises(RuntimeError, match=r"reduction dim|cannot be multiplied") as caught:
        step(state, (torch.ones(5, 3), torch.ones(5, 2)))
    assert "called with the model Linear" in caught.value.__notes__[0]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


BATCHES = {
    "an array": (np.ones((5, 4), np.float32), r"0 is a numpy\.ndarray: .*torch\.as_tensor"),
    "a set": ({1, 2}, "0 is a set: make its class a tree"),
    "a sparse tensor": (
        torch.ones(5, 4).to_sparse(),
        "dense tensors, but 0 is of torch.sparse_coo",
    ),
    "one that wants gradients": (torch.ones(5, 4, requires_grad=True), "0 requires gradients"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_cannot_be_taken(name):
    x, message = BATCHES[name]
    step, state = compiled(mse)
    with pytest.raises(fl.CompileError, match=message):
        step(state, (x, torch.ones(5, 2)))


def test_a_rate_to_be_differentiated_is_an_error():
    rate = torch.tensor(0.1, requires_grad=True)
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(rate)))
    with pytest.raises(fl.CompileError, match="requires gradients"):
        fl.compile(step, backend="aot_eager")(step.init(nn.Linear(4, 2)), batch())


def test_it_goes_outermost():
    step, state = compiled(mse)
    with pytest.raises(TypeError, match=r"ema wraps compile, which .* goes last"):
        fl.ema(0.9)(step)
    with pytest.raises(TypeError, match="goes last"):
        fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.compile, fl.ema(0.9))
    x, y = batch()
    with pytest.raises(fl.CompileError, match="goes outermost"):
        torch.func.vmap(lambda x: step(state, (x, y))[1]["loss"].total)(torch.stack([x, x]))
    with pytest.raises(fl.CompileError, match="goes outermost"):
        torch.func.grad(lambda x: step(state, (x, y))[1]["loss"].total)(x)


WRONG = {
    "compiled already": (lambda step: fl.compile(step), TypeError, "compiled already"),
    "mode": (lambda step: fl.compile(step.inner, mode="fast"), ValueError, "max-autotune.*'fast'"),
    "a number": (lambda step: fl.compile(3), TypeError, "Expected a function"),
    "a combinator": (lambda step: fl.compile(fl.accumulate(2)), TypeError, "still waits for"),
    "a callback": (lambda step: fl.compile(fl.early_stopping("loss")), TypeError, "is a callback"),
    "no state": (lambda step: step({}, batch()), TypeError, "takes a state.*got dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call(compiled(mse)[0])


def test_an_operation_that_does_not_say_what_it_returns():
    library = torch.library.Library("fnloop_test", "DEF")
    library.define("opaque(Tensor x) -> Tensor")
    library.impl("opaque", lambda x: x.clone(), "CPU")

    def loss(model, batch):
        return mse(model, (torch.ops.fnloop_test.opaque(batch[0]), batch[1]))

    step, state = compiled(loss)
    with pytest.raises(fl.CompileError, match=r"register_fake"):
        step(state, batch())
    library._destroy()


def test_the_log_says_how_large_the_graph_is(caplog):
    step, state = compiled(mse)
    with caplog.at_level(logging.INFO, "fnloop.compile"):
        step(state, batch())
        step(state, batch())
    (message,) = [r.message for r in caplog.records if r.name == "fnloop.compile"]
    assert re.fullmatch(r"One graph of \d+ operations, in [\d.]+ s\.", message)

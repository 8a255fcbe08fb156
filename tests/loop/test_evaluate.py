"""Evaluation and prediction."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


X, Y = torch.randn(23, 4), torch.randint(0, 3, (23,))


@pytest.mark.lightning("M2", "H6")
def test_it_is_the_mean_over_all_examples_in_evaluation_mode():
    net = model()
    state = fl.grad(loss).init(net)
    results = fl.evaluate(loss, state, fl.Batches((X, Y), batch_size=5))
    net.eval()
    with torch.no_grad():
        value, extra = loss(net, (X, Y))
    assert results["loss"] == pytest.approx(value.item(), rel=1e-6)
    assert results["accuracy"] == pytest.approx(extra["accuracy"].item(), rel=1e-6)


@pytest.mark.lightning("T29")
def test_it_leaves_the_state_and_the_global_random_state_alone():
    state = fl.grad(loss).init(model())
    buffers = {name: b.clone() for name, b in state.buffers.items()}
    random = torch.get_rng_state()
    noisy = lambda m, b: m(b[0]).mean() + torch.rand(())  # noqa: E731
    first, second = (fl.evaluate(noisy, state, [(X, Y)]) for _ in range(2))
    assert first == second and torch.equal(random, torch.get_rng_state())
    assert fl.tree_equal(buffers, dict(state.buffers))


def test_a_function_may_return_metrics_alone():
    state = fl.grad(loss).init(model())
    data = fl.Batches((X, Y), batch_size=5)
    assert set(fl.evaluate(lambda m, b: {"most": fl.Max(m(b[0]).max())}, state, data)) == {"most"}


@pytest.mark.parametrize("size", [4, 5, 7])
def test_a_group_counts_for_the_examples_of_all_its_batches(size):
    """The mean over all, as torch computes it, where groups have unequally many batches."""
    net = model()
    state = fl.grad(loss).init(net)
    data = fl.data.group(fl.Batches((X, Y), size, shuffle=False), 3)

    def whole(model, batch):
        return loss(model, [torch.cat(column) for column in zip(*batch.parts, strict=True)])

    results = fl.evaluate(whole, state, data)
    with torch.no_grad():
        value, extra = loss(net.eval(), (X, Y))
    assert results["loss"] == pytest.approx(value.item(), rel=1e-6)
    assert results["accuracy"] == pytest.approx(extra["accuracy"].item(), rel=1e-6)


def test_no_data():
    state = fl.grad(loss).init(model())
    with pytest.raises(ValueError, match="no batch"):
        fl.evaluate(loss, state, [])


def test_a_module_is_no_state():
    with pytest.raises(TypeError, match=r"evaluate\(state=.* takes a state"):
        fl.evaluate(loss, model(), [(X, Y)])


def test_validations_compare_by_their_data():
    data = (X, Y)
    assert fl.validate(loss, data) == fl.validate(loss, data)
    assert fl.validate(loss, data) != fl.validate(loss, (X, Y))


def test_the_parts_of_fl_data():
    state = fl.grad(loss).init(model())
    parts = {"train": fl.Batches((X, Y), 5), "validate": fl.Batches((X[:9], Y[:9]), 5)}
    expected = fl.evaluate(loss, state, parts["validate"])
    assert fl.evaluate(loss, state, fl.Data(**parts)) == expected
    assert fl.evaluate(loss, state, fl.Data(parts["train"], test=parts["validate"])) == expected
    assert fl.validate(loss, fl.Data(**parts)).data.value is parts["validate"]
    ordered = fl.Data(**parts, predict=fl.Batches(X, 5, shuffle=False))
    assert sum(len(y) for y in fl.predict(lambda m, x: m(x), state, ordered)) == 23
    with pytest.raises(ValueError, match=r"several: give data\.validate or data\.test"):
        fl.evaluate(loss, state, fl.Data(**parts, test=[(X, Y)]))
    with pytest.raises(ValueError, match=r"without the part .*fl\.Data\(train, validate=\.\.\.\)"):
        fl.evaluate(loss, state, fl.Data(parts["train"]))
    with pytest.raises(ValueError, match=r"fl\.Data\(train, predict=\.\.\.\)"):
        next(iter(fl.predict(lambda m, b: m(b[0]), state, fl.Data(**parts))))


def test_an_average_that_nobody_keeps_is_told_at_the_first_step():
    def loss(model, batch):
        return model(batch).square().mean()

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    data = fl.Batches(torch.ones(8, 2), 2)
    seen = []
    validate = fl.every(1, fl.validate(loss, data, params="ema"), unit="epoch")
    with pytest.raises(ValueError, match=r"params='ema': the state has no such slot.*add fl\.ema"):
        for state, _ in fl.run(
            step, step.init(torch.nn.Linear(2, 1)), data, epochs=1, callbacks=[validate]
        ):
            seen.append(state)
    assert not seen


class Carrying(nn.Module):
    """Carries a hidden state from batch to batch, and keeps a cache."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)
        self.register_buffer("hidden", torch.zeros(1, 4, 5))
        self.register_buffer("same", torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        y, hidden = self.cell(x, self.hidden)
        self.hidden, self.same = hidden.detach(), self.same.clone()
        self.calls += self.training
        return self.head(y)


def ahead(model, x):
    return (model(x[:, :-1]) - x[:, 1:]).square().mean()


def test_each_batch_begins_with_the_buffers_of_the_state_and_that_is_told_once():
    generator = torch.Generator().manual_seed(0)
    chunks = [torch.randn(4, 8, 3, generator=generator) for _ in range(5)]
    step = fl.pipe(ahead, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, _ = step(step.init(Carrying()), chunks[0])
    assert bool(state.buffers["hidden"].any())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = fl.evaluate(ahead, state, chunks)["loss"]
        assert fl.evaluate(ahead, state, chunks[::-1])["loss"] == pytest.approx(found, rel=1e-6)
        outputs = list(fl.predict(lambda model, x: model(x), state, chunks))
    (message,) = [str(each.message) for each in told]
    assert "The model Carrying wrote to its buffers in evaluation: hidden. Each batch" in message
    assert "fl.to_module(state).eval()" in message
    values = []
    for chunk, output in zip(chunks, outputs, strict=True):
        net = fl.to_module(state).eval()
        with torch.no_grad():
            values.append(ahead(net, chunk).item())
            net.hidden = state.buffers["hidden"]
            torch.testing.assert_close(output, net(chunk))
    assert found == pytest.approx(sum(values) / 5, rel=1e-6)

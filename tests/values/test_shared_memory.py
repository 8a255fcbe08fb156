"""Tensors of a module that are views of one another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.ones(6, 1)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


class Views(nn.Module):
    """Buffers that are views of a larger one, which is written through some of them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        table = torch.zeros(4, 2)
        self.register_buffer("row", table[1])
        self.register_buffer("table", table)
        self.register_buffer("column", table[:, 1])
        self.register_buffer("flat", table.view(-1))

    def forward(self, x):
        self.row += 1
        self.column += x.detach().mean()
        self.flat[0] += 2
        return self.linear(x) + self.table.sum()


def reference(steps):
    torch.manual_seed(0)
    module = Views()
    state = STEP.init(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module, (X, Y)).backward()
        optimizer.step()
    return state, module


@pytest.mark.parametrize("compiled", [False, True])
def test_buffers_that_are_views_stay_together(compiled):
    state, module = reference(3)
    step = fl.compile(STEP, backend="aot_eager") if compiled else STEP
    for _ in range(3):
        state, _ = step(state, (X, Y))
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close({**state.params, **state.buffers}[name], tensor)
    addresses = {t.untyped_storage().data_ptr() for t in state.buffers.values()}
    assert compiled or len(addresses) == 4  # in the state, each has memory of its own
    built = fl.to_module(state)
    built.table.fill_(7)
    assert built.row.tolist() == [7, 7] and built.flat.tolist() == [7] * 8


def test_views_under_vmap():
    state, _ = reference(0)
    states = [state, STEP(state, (X, Y))[0]]
    fl.testing.check_vmaps(STEP, states, (X, Y))


class Tied(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.linear, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        keep(self)

    def forward(self, x):
        return self.linear(x).sum(1, keepdim=True)


def parameter_of_parameter(model):
    model.part = nn.Parameter(model.linear.weight.data[:2])


def buffer_of_parameter(model):
    model.register_buffer("part", model.linear.weight.data[0])


def tensor_of_parameter(model):
    model.part = model.linear.weight.detach().t()


def windows(model):
    base = torch.zeros(6)
    model.register_buffer("a", base[:4])
    model.register_buffer("b", base[2:])


def tensor_of_buffer(model):
    model.register_buffer("a", torch.zeros(4))
    model.part = {"x": [model.a[1:]]}


@pytest.mark.parametrize(
    "keep",
    [parameter_of_parameter, buffer_of_parameter, tensor_of_parameter, windows, tensor_of_buffer],
)
def test_what_would_come_apart_is_refused(keep):
    with pytest.raises(ValueError, match="share memory, as views of one another"):
        STEP.init(Tied(keep))


def pieces(model):
    base = torch.randn(9)
    model.a, model.b = nn.Parameter(base[:4]), nn.Parameter(base[4:])
    model.register_buffer("even", torch.zeros(6)[::2])
    interleaved = torch.zeros(3, 2)
    model.register_buffer("left", interleaved[:, 0])
    model.register_buffer("right", interleaved[:, 1])


def tied(model):
    model.other.weight = model.linear.weight
    model.register_buffer("one", torch.zeros(2))
    model.register_buffer("two", model.one)


def others(model):
    model.table = torch.zeros(4)
    model.part = model.table[:2]


@pytest.mark.parametrize("keep", [pieces, tied, others])
def test_what_lies_side_by_side_is_fine(keep):
    state = STEP.init(Tied(keep))
    after, _ = STEP(state, (X, Y))
    assert not torch.equal(after.params["linear.weight"], state.params["linear.weight"])

"""Gradients come in the layout of their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop._torch.autograd import gradients


@pytest.mark.parametrize(
    "loss",
    [
        lambda w: w.sum(),  # an expanded gradient
        lambda w: (w.t().contiguous() ** 2).sum(),
        lambda w: w[:, 0].sum(),
        lambda w: (
            w.to(memory_format=torch.contiguous_format) * torch.ones(3, 4).t().clone().t()
        ).sum(),
    ],
)
def test_layout(loss):
    w = torch.randn(3, 4, requires_grad=True)
    (grad,) = gradients(loss(w), [w], torch.tensor(1.0))
    (expected,) = torch.autograd.grad(loss(w), [w])
    assert grad.stride() == w.stride()
    torch.testing.assert_close(grad, expected)


def test_sparse_gradients_become_dense():
    embedding = nn.Embedding(5, 3, sparse=True)
    (grad,) = gradients(
        embedding(torch.tensor([1, 1, 4])).sum(), [embedding.weight], torch.tensor(2.0)
    )
    assert grad.layout is torch.strided and grad.sum(1).tolist() == [0, 12, 0, 0, 6]


@pytest.mark.parametrize("convert", ["input", "model", "memory"])
@pytest.mark.parametrize(
    "optimizer", [fl.optim.adamw(1e-2), fl.optim.sgd(1e-2, momentum=0.9)], ids=["adamw", "sgd"]
)
def test_channels_last_trains_as_torch_does(convert, optimizer):
    torch.manual_seed(0)
    model = nn.Conv2d(8, 8, 3)
    x = torch.randn(4, 8, 10, 10)
    if convert == "input":
        x = x.to(memory_format=torch.channels_last)
    if convert == "model":
        model = model.to(memory_format=torch.channels_last)
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    state = step.init(model)
    if convert == "memory":  # as after loading parameters of another layout
        weight = state.params["weight"].to(memory_format=torch.channels_last)
        state = state.replace(params={**state.params, "weight": weight})
    kind = torch.optim.AdamW if "adamw" in repr(optimizer) else torch.optim.SGD
    options = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
    reference = kind(model.parameters(), lr=1e-2, **options)
    for _ in range(3):
        state, _ = step(state, x)
        reference.zero_grad()
        loss(model, x).backward()
        reference.step()
    torch.testing.assert_close(state.params["weight"], model.weight.detach())

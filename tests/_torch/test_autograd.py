"""Gradients come in the layout of their parameters."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop._torch.autograd import NoGradientError, gradients


def differentiated(loss, inputs, asked=False, seed=1.0):
    """The gradients of ``loss(*inputs)``."""
    return gradients(
        lambda tape: tape.backward(loss(*tape.leaves), torch.tensor(seed)), inputs, asked
    )


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
    (grad,) = differentiated(loss, [w])
    (expected,) = torch.autograd.grad(loss(w), [w])
    assert grad.stride() == w.stride()
    torch.testing.assert_close(grad, expected)


def test_sparse_gradients_become_dense():
    places = torch.tensor([1, 1, 4])
    loss = lambda w: nn.functional.embedding(places, w, sparse=True).sum()  # noqa: E731
    (grad,) = differentiated(loss, [torch.randn(5, 3)], seed=2.0)
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


def test_what_the_loss_does_not_reach_has_no_gradient():
    a, b = torch.ones(2), torch.ones(3)
    grads = differentiated(lambda a, b: a.sum(), [a, b])
    assert grads[0].tolist() == [1, 1] and grads[1] is None
    inside = torch.func.vmap(lambda a: differentiated(lambda a, b: a.sum(), [a, b])[0])
    assert inside(a[None]).tolist() == [[1, 1]]
    assert torch.func.vmap(
        lambda a: torch.ones(()) * (differentiated(lambda a, b: a.sum(), [a, b])[1] is None)
    )(a[None]).tolist() == [1]


def test_a_loss_that_reaches_nothing_is_told():
    constant = torch.tensor(3.0)
    with pytest.raises(NoGradientError):
        differentiated(lambda a: constant, [torch.ones(2)])
    with pytest.raises(NoGradientError):
        torch.func.vmap(lambda a: differentiated(lambda a: constant, [a])[0])(torch.ones(1, 2))


def test_both_engines_agree_and_can_be_differentiated_again():
    def slope(x):
        (grad,) = differentiated(lambda w: (w**3).sum(), [x], asked=x.requires_grad)
        return grad

    x = torch.tensor([1.0, 2.0])
    assert not slope(x).requires_grad
    again = x.clone().requires_grad_()
    (second,) = torch.autograd.grad(slope(again).sum(), again)
    inside = torch.func.grad(lambda x: slope(x).sum())(x)
    for got in (second, inside):
        torch.testing.assert_close(got, 6 * x)
    torch.testing.assert_close(torch.func.vmap(slope)(x[None])[0], slope(x))


def test_gradients_are_taken_under_no_grad_which_holds_again_after():
    with torch.no_grad():
        (grad,) = differentiated(lambda w: (w**2).sum(), [torch.tensor([3.0])])
        assert not torch.is_grad_enabled() and grad.tolist() == [6] and not grad.requires_grad
        with pytest.raises(NoGradientError):
            differentiated(lambda w: torch.ones(()), [torch.ones(1)])
        assert not torch.is_grad_enabled()


def test_the_callers_tensors_get_no_gradient_and_no_history():
    w = torch.ones(2, requires_grad=True)
    differentiated(lambda w: (w**2).sum(), [w])
    assert w.grad is None and w.is_leaf


class Threads(torch.autograd.Function):
    """Notes whether autograd may use a thread for each device."""

    seen: ClassVar[list[bool]] = []
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        Threads.seen.append(torch._C._is_multithreading_enabled())
        return grad


@pytest.mark.parametrize("nested", [False, True])
def test_the_backward_pass_runs_in_the_thread_that_asks_for_it(nested):
    """On a GPU autograd would run it in another one; the device "meta" stands for it."""
    w, seed = torch.ones(3, device="meta"), torch.ones((), device="meta")

    def slope(w):
        loss = lambda w: Threads.apply(w).sum()  # noqa: E731
        return gradients(lambda tape: tape.backward(loss(*tape.leaves), seed), [w], False)[0]

    Threads.seen.clear()
    torch.func.vmap(slope)(w[None]) if nested else slope(w)
    assert Threads.seen == [False] and torch._C._is_multithreading_enabled()

"""Law 12 by example: derivatives through steps, with respect to whatever is given to them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fnloop as fl

DOUBLE = torch.float64


def square(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def step_of(loss=square, optimizer=None, after=()):
    return fl.pipe(loss, fl.grad, fl.update(optimizer or fl.optim.adamw(0.1)), *after)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


MODEL = net()


def batch(seed=1, n=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=DOUBLE)
    return x, torch.randn(n, 2, generator=generator, dtype=DOUBLE)


def differences(function, at, h=1e-5):
    """The gradient of a function to one number, by central differences."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        change = torch.zeros_like(at).view(-1)
        change[i] = h
        change = change.view_as(at)
        found.view(-1)[i] = (function(at + change) - function(at - change)) / (2 * h)
    return found


def agree(function, at):
    """By ``torch.autograd.grad``, by ``torch.func.grad``, by differences: all the same, not 0."""
    expected = differences(lambda value: function(value).detach(), at)
    assert expected.abs().max() > 1e-6
    wanted = at.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(function(wanted), wanted)
    torch.testing.assert_close(by_autograd, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(torch.func.grad(function)(at), expected, rtol=1e-5, atol=1e-8)


def after(step, state, n=2):
    """A number that depends on the parameters after a few steps."""
    for i in range(n):
        state, _ = step(state, batch(i))
    return square(lambda x: torch.func.functional_call(MODEL, dict(state.params), (x,)), batch(9))


def test_with_respect_to_a_tensor_that_the_loss_closes_over():
    state = step_of().init(net())

    def function(weights):
        def loss(model, batch):
            x, y = batch
            return ((model(x) - y).square().mean(1) * weights).sum()

        return after(step_of(loss), state)

    agree(function, torch.linspace(0.5, 1.5, 6, dtype=DOUBLE))


def test_one_step_with_a_closure_whose_tensor_begins_to_require_gradients():
    weight = torch.tensor(1.0, dtype=DOUBLE)
    step = step_of(lambda model, batch: weight * square(model, batch), fl.optim.sgd(0.1))
    state = step.init(net())
    step(state, batch())
    weight.requires_grad_()
    new, _ = step(state, batch())
    (found,) = torch.autograd.grad(new.params["2.bias"].sum(), weight)
    _, grads = fl.grad(square)(state, batch())
    torch.testing.assert_close(found, -0.1 * grads.mean["2.bias"].sum())


def test_with_respect_to_a_field_of_the_loss():
    @fl.tree
    class smoothed:
        strength: torch.Tensor

        def __call__(self, model, batch):
            return square(model, batch) + (self.strength * model[0].weight.square()).sum()

    state = step_of().init(net())
    agree(
        lambda strength: after(step_of(smoothed(strength)), state),
        torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE),
    )


def test_with_respect_to_initial_parameters():
    step = step_of(after=[fl.ema(0.9)])
    state = step.init(net())

    def function(weight):
        return after(step, step.init(state.replace(params={**state.params, "2.weight": weight})))

    agree(function, state.params["2.weight"])


def test_init_from_a_state_carries_the_derivative_into_memory_that_is_made_of_it():
    state = fl.grad(square).init(net())
    step = step_of(optimizer=fl.optim.sgd(0.1), after=[fl.ema(0.5)])

    def function(weight):
        begun = step.init(state.replace(params={**state.params, "2.weight": weight}))
        new, _ = step(begun, batch())
        return (new["ema"]["2.weight"] ** 2).sum()

    agree(function, state.params["2.weight"])


def test_with_respect_to_the_batch():
    step = step_of()
    state = step.init(net())
    x, y = batch()

    def function(x):
        new, _ = step(state, (x, y))
        return after(step, new, 1)

    agree(function, x)


def test_with_respect_to_the_weights_of_a_weighted_mean():
    def loss(model, batch):
        (x, y), w = batch
        return fl.Mean(((model(x) - y).square().mean(1) * w).sum(), w.sum())

    step = step_of(loss)
    state = step.init(net())

    def function(w):
        new, metrics = step(state, (batch(), w))
        return metrics["loss"].value() + (new.params["0.weight"] ** 2).sum()

    agree(function, torch.linspace(0.5, 1.5, 6, dtype=DOUBLE))


def test_with_respect_to_a_learning_rate_and_a_multiplier():
    state = step_of().init(net())
    agree(
        lambda lr: after(step_of(optimizer=fl.optim.adamw(lr)), state),
        torch.tensor(0.05, dtype=DOUBLE),
    )

    agree(  # of weight decay alone: fused kernels take it as a number
        lambda decay: after(step_of(optimizer=fl.optim.adamw(0.05, weight_decay=decay)), state),
        torch.tensor(0.1, dtype=DOUBLE),
    )

    def scaled(factor):
        memory = state["update"]
        scales = {**memory["scale"], "adamw.lr": factor}
        return after(step_of(), state.put("update", {**memory, "scale": scales}))

    agree(scaled, torch.tensor(0.5, dtype=DOUBLE))


def test_of_a_reported_metric():
    def loss(model, batch):
        value = square(model, batch)
        return value, {"twice": 2 * value, "most": fl.Max(model(batch[0]).max())}

    step = step_of(loss, fl.optim.sgd(0.1))
    state = step.init(net())
    for name in ("loss", "twice", "most"):

        def function(weight, name=name):
            given = state.replace(params={**state.params, "0.weight": weight})
            given, _ = step(given, batch())
            return step(given, batch(2))[1][name].value()

        agree(function, state.params["0.weight"])


def test_micro_batches_and_the_whole_have_one_derivative():
    def function(k):
        step = fl.pipe(square, fl.grad, fl.accumulate(k), fl.update(fl.optim.sgd(0.1)))
        state = step.init(net())
        return lambda x: after(step, step(state, (x, batch()[1]))[0], 1)

    x = batch()[0]
    agree(function(4), x)
    parts, whole = torch.func.grad(function(4))(x), torch.func.grad(function(1))(x)
    torch.testing.assert_close(parts, whole)


def test_a_derivative_of_a_derivative():
    step = step_of(optimizer=fl.optim.sgd(0.1))
    state = step.init(net())

    def value_at(lr):
        return after(step_of(optimizer=fl.optim.sgd(lr)), state)

    slope = torch.func.grad(value_at)
    lr = torch.tensor(0.1, dtype=DOUBLE)
    torch.testing.assert_close(
        torch.func.grad(slope)(lr), differences(slope, lr), rtol=1e-5, atol=1e-8
    )
    rate = lr.clone().requires_grad_()
    (first,) = torch.autograd.grad(value_at(rate), rate, create_graph=True)
    (second,) = torch.autograd.grad(first, rate)
    torch.testing.assert_close(second, torch.func.grad(slope)(lr))


def test_a_skipped_step_passes_derivatives_on():
    step = step_of(after=[fl.ema(0.9)])
    state = step.init(net())
    weight = state.params["0.weight"].clone().requires_grad_()
    new, metrics = step(
        state.replace(params={**state.params, "0.weight": weight}),
        (batch()[0] * torch.nan, batch()[1]),
    )
    assert float(metrics["skipped"]) == 1
    (found,) = torch.autograd.grad(new.params["0.weight"].sum(), weight)
    assert torch.equal(found, torch.ones_like(weight))


def graph_size(tensor):
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


@pytest.mark.filterwarnings("ignore:The loss .* was computed from parameters")
def test_a_teacher_in_a_closure_does_not_make_a_graph_grow():
    teacher, student = net(5), net()
    before = copy.deepcopy(teacher.state_dict())

    def distil(model, batch):
        return (model(batch[0]) - teacher(batch[0])).square().mean()

    step = step_of(distil, after=[fl.ema(0.9)])
    state = step.init(student)
    for i in range(4):
        state, metrics = step(state, batch(i))
        leaves = [*fl.tree_leaves(state), *fl.tree_leaves(metrics)]
        assert not any(leaf.requires_grad for leaf in leaves)
    assert all(p.grad is None for p in [*teacher.parameters(), *student.parameters()])
    assert all(torch.equal(before[name], p) for name, p in teacher.state_dict().items())


def test_nothing_that_is_asked_for_makes_no_graph_and_a_run_lets_go_of_one():
    rate = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    step = step_of(optimizer=fl.optim.sgd(rate))
    state = step.init(net())
    one, _ = step(state, batch())
    two, _ = step(one, batch())
    assert graph_size(two.params["0.weight"]) > graph_size(one.params["0.weight"]) > 0
    with torch.no_grad():
        assert not step(state, batch())[0].params["0.weight"].requires_grad
    for new, metrics in fl.run(step, state, [batch(i) for i in range(3)], steps=3):
        leaves = [*fl.tree_leaves(new), *fl.tree_leaves(metrics)]
        assert not any(leaf.requires_grad for leaf in leaves)


def test_from_torch_refuses_each_of_them():
    step = step_of(optimizer=fl.optim.from_torch(torch.optim.SGD, lr=0.1))
    state = step.init(net())
    wanted = {name: p.clone().requires_grad_() for name, p in state.params.items()}
    x, y = batch()
    for function in (
        lambda: step(state.replace(params=wanted), (x, y)),
        lambda: torch.func.grad(lambda x: step(state, (x, y))[1]["loss"].value())(x),
    ):
        with pytest.raises(RuntimeError, match=r"cannot be (differentiated|.*torch\.func)"):
            function()
    with torch.no_grad():
        step(state.replace(params=wanted), (x, y))


@pytest.mark.parametrize("wanted", ["batch", "closure"])
def test_from_torch_refuses_gradients_that_could_be_differentiated(wanted):
    weight = torch.tensor(2.0, dtype=DOUBLE, requires_grad=wanted == "closure")
    step = step_of(lambda m, b: weight * square(m, b), fl.optim.from_torch(torch.optim.SGD, lr=0.1))
    x, y = batch()
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        step(step.init(net()), (x.clone().requires_grad_(wanted == "batch"), y))

"""Memory of every kind that a stage may bring along, in a compiled step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def batch(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randn(n, 2, generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def donating(step):
    return fl.compile(step, donate=True, backend="aot_eager")


def address(state):
    return state.params["weight"].data_ptr()


def look(taken):
    return [leaf.clone() for leaf in fl.tree_leaves(taken)]


@fl.tree
class Memory(fl.base.StepStage):
    """Has the memory that it is told to make, and changes it as it is told."""

    wraps = "step"
    label = "memory"
    inner: object
    make: Callable
    change: Callable
    name: str = "mine"

    def init_state(self, state):
        return self.make()

    def __call__(self, state, x):
        after, metrics = self.inner(state, x)
        return after.put(self.name, self.change(state[self.name])), metrics


def remembering(make, change):
    return fl.pipe(
        mse, fl.grad, fl.update(fl.optim.adamw(0.1)), lambda step: Memory(step, make, change)
    )


def doubled(memory):
    return fl.tree_map(lambda t: t * 2 + 1, memory)


@fl.tree
class Pair:
    left: torch.Tensor
    right: torch.Tensor


def in_two_places():
    zero = torch.zeros(())
    return {"plain": zero, "list": [zero, zero], "tuple": (zero,), "pair": Pair(zero, zero)}


@pytest.mark.parametrize("part", ["plain", "list", "tuple", "pair"])
def test_containers_that_are_kept_stay_as_they_were(part):
    step = donating(remembering(in_two_places, doubled))
    state = step.init(net())
    for i in range(3):
        state, _ = step(state, batch(seed=i))
        kept = state["mine"][part]
        before = look(kept)
        for j in range(2):
            state, _ = step(state, batch(seed=j))
        assert fl.tree_equal(before, look(kept))
    assert fl.tree_leaves(state["mine"]) == [2**9 - 1] * 6


STRIDED = {
    "every second": lambda: {"t": torch.arange(6.0)[::2]},
    "expanded": lambda: {"t": torch.zeros(()).expand(3)},
    "transposed": lambda: {"t": torch.arange(6.0).view(2, 3).t()},
    "empty": lambda: {"t": torch.zeros(0), "n": torch.zeros(())},
}


@pytest.mark.parametrize("donate", [True, False])
@pytest.mark.parametrize("name", STRIDED)
def test_memory_of_any_strides(name, donate):
    step = remembering(STRIDED[name], doubled)
    fast = fl.compile(step, donate=donate, backend=strict)
    expected = step.init(net())
    got = expected.replace()
    for i in range(4):
        expected, _ = step(expected, batch(seed=i))
        got, _ = fast(got, batch(seed=i))
        assert fl.tree_equal(expected["mine"], got["mine"])


def strict(graph, inputs):
    """A backend that takes what it was built for, and nothing else."""
    kinds = [(t.shape, t.stride(), t.dtype) for t in inputs]

    def run(*given):
        assert [(t.shape, t.stride(), t.dtype) for t in given] == kinds
        return graph.forward(*given)

    return run


def test_memory_in_odd_containers_costs_no_copy_of_the_rest():
    step = donating(remembering(in_two_places, doubled))
    state, _ = step(step.init(net()), batch())
    place = address(state)
    for i in range(3):
        state, _ = step(state, batch(seed=i))
        assert address(state) == place


OUTSIDE = {
    "an array": lambda array: {"t": fl.Tensors({"weight": torch.from_numpy(array)})},
    "a tensor": lambda array: {"t": fl.Tensors({"weight": torch.as_tensor(array)})},
    "a list": lambda array: {"t": [torch.from_numpy(array)]},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_named_memory_that_comes_from_outside_is_not_written_to(name):
    array = np.ones((2, 4), np.float32)
    step = donating(remembering(lambda: OUTSIDE[name](array), doubled))
    state = step.init(net())
    for i in range(3):
        state, _ = step(state, batch(seed=i))
    assert np.array_equal(array, np.ones((2, 4), np.float32))
    assert fl.tree_leaves(state["mine"])[0].unique().tolist() == [15.0]


@fl.tree
class Mirror(fl.base.StepStage):
    """Its memory is the new parameters themselves, and so is a metric."""

    wraps = "step"
    label = "mirror"
    inner: object
    name: str = "mirror"

    def init_state(self, state):
        return {"all": state.params, "one": state.params["weight"]}

    def __call__(self, state, x):
        after, metrics = self.inner(state, x)
        memory = {"all": after.params, "one": after.params["weight"]}
        return after.put(self.name, memory), {**metrics, "w": fl.Last(after.params["weight"])}


@pytest.mark.parametrize("donate", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_what_stands_in_two_places_is_taken_apart(donate, backend):
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.adamw(0.1)), Mirror)
    fast = fl.compile(step, donate=donate, backend=backend)
    state, shown = fast.init(net()), []
    for i in range(4):
        expected, wanted = step(fl.tree_map(torch.clone, state), batch(seed=i))
        state, metrics = (fast.donating() if i % 2 else fast)(state, batch(seed=i))
        torch.testing.assert_close(dict(expected.params), dict(state.params))
        torch.testing.assert_close(dict(expected["mirror"]["all"]), dict(state["mirror"]["all"]))
        torch.testing.assert_close(expected["mirror"]["one"], state["mirror"]["one"])
        torch.testing.assert_close(wanted["w"].value(), metrics["w"].value())
        shown.append((metrics, look(metrics)))
    assert all(fl.tree_equal(look(metrics), before) for metrics, before in shown)


def test_memory_that_comes_from_outside_is_not_written_to():
    array = np.ones(3, np.float32)
    step = donating(remembering(lambda: {"t": torch.from_numpy(array)}, doubled))
    state = step.init(net())
    for _ in range(2):
        state, _ = step(state, batch())
    assert state["mine"]["t"].tolist() == [7.0] * 3
    assert array.tolist() == [1.0] * 3
    state = state.put("mine", {"t": torch.from_numpy(array)})
    place = address(state)
    for _ in range(2):
        state, _ = step(state, batch())
    assert array.tolist() == [1.0] * 3
    assert address(state) == place


CHANGED = {
    "dtype": (lambda t: t + 0.5, r"makes f32\[3\] of slots/mine/t, which was i64\[3\]"),
    "shape": (lambda t: t.sum(), r"makes i64\[\] of slots/mine/t, which was i64\[3\]"),
}


@pytest.mark.parametrize("donate", [True, False])
@pytest.mark.parametrize("name", CHANGED)
def test_a_state_that_changes_its_kind_is_an_error(name, donate):
    change, message = CHANGED[name]
    step = remembering(lambda: {"t": torch.arange(3)}, lambda memory: {"t": change(memory["t"])})
    fast = fl.compile(step, donate=donate, backend="aot_eager")
    with pytest.raises(fl.errors.CompileError, match=message):
        fast(fast.init(net()), batch())


class Writing(nn.Module):
    """Has a buffer that is another at the end of a call."""

    def __init__(self, old, new):
        super().__init__()
        self.linear, self.new = nn.Linear(4, 2), new
        self.register_buffer("memory", old)

    def forward(self, x):
        y = self.linear(x)
        self.memory = self.new.clone() * y.detach().mean().to(self.new.dtype)
        return y


BUFFERS = {
    "a row": (torch.zeros(4, 3), torch.ones(1, 3), r"makes f32\[1,3\] of memory, which was f32\[4"),
    "a number": (torch.zeros(3), torch.ones(()), r"makes f32\[\] of memory, which was f32\[3\]"),
    "nothing": (torch.zeros(0), torch.ones(3), r"makes f32\[3\] of memory, which was f32\[0\]"),
    "longer": (torch.zeros(2), torch.ones(3), r"makes f32\[3\] of memory, which was f32\[2\]"),
    "shorter float": (torch.zeros(3).double(), torch.ones(3), r"f32\[3\] of memory, which was f64"),
    "longer float": (torch.zeros(3), torch.ones(3).double(), r"f64\[3\] of memory, which was f32"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_is_not_broadcast_to_what_it_was(name):
    old, new, message = BUFFERS[name]
    step = fl.pipe(
        mse, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)), fl.guard(fl.rules.nonfinite())
    )
    state = step.init(Writing(old, new))
    after, _ = step(state, batch(4))
    assert after.buffers["memory"].shape == new.shape
    assert after.buffers["memory"].dtype == new.dtype
    fast = fl.compile(step, backend="aot_eager")
    with pytest.raises(fl.errors.CompileError, match=message):
        fast(state, batch(4))


class Carrying(nn.Module):
    """Carries a hidden state, of as many rows as its last batch had."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4 + 2, 2)
        self.register_buffer("hidden", torch.zeros(4, 2))

    def forward(self, x):
        before = self.hidden[: len(x)].expand(len(x), 2)
        self.hidden = torch.tanh(self.linear(torch.cat([x, before], 1))).detach()
        return self.linear(torch.cat([x, before], 1))


def test_a_hidden_state_of_a_smaller_batch_is_an_error_and_not_another_number():
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.5)))
    fast = fl.compile(step, backend="aot_eager")
    state = step.init(Carrying())
    model = fl.to_module(state).requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    plain = state
    for n in (4, 1, 4):
        value = mse(model, batch(n))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        plain, metrics = step(plain, batch(n))
        assert float(metrics["loss"]) == pytest.approx(float(value.detach()), rel=1e-5)
    torch.testing.assert_close(plain.buffers["hidden"], model.hidden)
    state, _ = fast(state, batch(4))
    for n in (1, 3, 2):
        with pytest.raises(fl.errors.CompileError, match=r"of hidden, which was f32\[4,2\]"):
            fast(state, batch(n))

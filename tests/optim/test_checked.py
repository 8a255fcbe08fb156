"""Optimizers written wrongly: the error says what they must return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fnloop as fl


@fl.tree
class o(fl.optim.Optimizer):
    how: str
    lr: Any = 0.1
    name: str = "o"

    def init_state(self, params):
        return {"c": torch.zeros(()), "m": params.zeros()}

    def update(self, grads, memory, params, step):
        updates = grads.scale(-0.1)
        own = {"c": torch.ones(()), "m": grads}
        if self.how == "no name":
            return updates, own
        if self.how == "another name":
            return updates, {**{k: v for k, v in memory.items() if k != "o"}, "other": own}
        if self.how == "only its own":
            return updates, {"o": own}
        if self.how == "no own memory":
            return updates, memory["c"]
        if self.how == "only updates":
            return updates
        if self.how == "three":
            return updates, own, memory
        if self.how == "dict":
            return {name: -g for name, g in grads.items()}[0], memory
        if self.how == "list":
            return list(updates.values()), memory
        if self.how == "tensors":
            return updates, updates
        if self.how == "operator":
            return -self.lr * grads, memory
        if self.how == "unknown":
            return updates, {**memory, "o": memory["nothing"]}
        return updates, {**memory, "o": own}


@fl.tree
class without_lr(fl.optim.Optimizer):
    name: str = "without_lr"

    def init_state(self, params):
        return {"m": params.zeros()}

    def update(self, grads, memory, params, step):
        return grads.scale(-0.1), {"m": grads}


PLACES = {
    "alone": lambda optimizer: optimizer,
    "last": lambda optimizer: fl.optim.chain(fl.optim.clip_by_norm(1.0), optimizer),
    "first": lambda optimizer: fl.optim.chain(optimizer, fl.optim.add_decayed_weights(0.1)),
    "label": lambda optimizer: fl.optim.by_label({"a": optimizer}, lambda name, p: "a"),
    "masked": lambda optimizer: fl.optim.masked(optimizer, ["weight"]),
}


def stepped(optimizer, model=lambda: nn.Linear(2, 1)):
    step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(optimizer))
    return step(step.init(model), torch.ones(3, 2))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no name", r"o\.update must return .* the entries that it was given .* returned 'c', 'm'"),
        ("another name", r"o\.update must .*'other'\. Write: return updates, {\*\*memory"),
        ("no own memory", r"reads memory\['c'\].* Its own is memory\[self\.name\]\['c'\]"),
        ("only updates", r"o\.update must return two things, .*, and returned Tensors"),
        ("three", r"returned a tuple of 3"),
        ("list", r"as updates, which are fl\.Tensors, it returned list"),
        ("tensors", r"as memory, a dict by optimizer name, it returned Tensors"),
        ("operator", r"no operator \*, here with float.*mean\.scale\(0\.5\)"),
    ],
)
def test_the_error_says_what_is_wrong(how, message, place):
    with pytest.raises(TypeError, match=message):
        stepped(place(o(how)))


def test_memory_of_others_is_kept():
    for optimizer in (o("only its own"), without_lr()):
        with pytest.raises(TypeError, match=r"the entries that it was given \('scale', '.*'\)"):
            stepped(optimizer)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_updates_alone_are_noticed_whatever_their_number(width):
    def model():
        return nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(width)])

    with pytest.raises(TypeError, match="must return two things"):
        stepped(o("only updates"), model)


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError, match="nothing"):
        stepped(o("unknown"))
    with pytest.raises(KeyError, match="0"):
        stepped(o("dict"))


def test_under_compile_too():
    step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(o("no name")))
    with pytest.raises(Exception, match="must return two things"):
        fl.compile(step, backend="aot_eager")(step.init(nn.Linear(2, 1)), torch.ones(3, 2))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_one_written_well_is_left_alone(place):
    state, _ = stepped(place(o("well")))
    assert int(state.step) == 1

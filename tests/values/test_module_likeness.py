"""Modules that do the same, but for their parameters."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from torch import nn

from fnloop.values.module_likeness import behave_alike


class Holding(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class Itself(Plain):
    def __init__(self, n):
        self.n, self.itself = n, self


EQUAL = {
    "numbers": lambda: 1,
    "nan": lambda: float("nan"),
    "dicts": lambda: {"a": [1, {"b": 2}]},
    "sets": lambda: {1, 2},
    "objects": lambda: Plain(a=[Plain(b=1)]),
    "slots": lambda: Slotted(1),
    "partials": lambda: functools.partial(max, 1),
    "namespaces": lambda: types.SimpleNamespace(a=1),
    "functions": lambda: max,
    "cycles": lambda: Itself(1),
    "placeholders": lambda: torch.empty(2, device="meta"),
}
DIFFERENT = {
    "numbers": (1, 2),
    "types": (1, True),
    "zeros": (0.0, -0.0),
    "order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "order within": ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}]),
    "objects": (Plain(a=1), Plain(a=2)),
    "slots": (Slotted(1), Slotted(2)),
    "partials": (functools.partial(max, 1), functools.partial(max, 2)),
    "functions": (max, min),
    "cycles": (Itself(1), Itself(2)),
    "tensors": (torch.ones(2), torch.ones(2)),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_attributes(name):
    assert behave_alike(Holding(EQUAL[name]()), Holding(EQUAL[name]()))


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_attributes(name):
    one, other = DIFFERENT[name]
    assert not behave_alike(Holding(one), Holding(other))
    assert behave_alike(Holding(one), Holding(one))


class Method(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
        self.register_forward_hook(self.note)

    def note(self, module, inputs, output):
        return output


def hooked(hook, kind="register_forward_hook", **options):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    getattr(model[1], kind)(hook, **options)
    return model


def test_hooks_count_in_their_order_and_not_by_their_numbers():
    hook = lambda *_: None  # noqa: E731
    assert behave_alike(hooked(hook), hooked(hook)) and behave_alike(Method(), Method())
    assert not behave_alike(hooked(hook), hooked(lambda *_: None))
    assert not behave_alike(hooked(hook), hooked(hook, "register_forward_pre_hook"))
    assert not behave_alike(hooked(hook), hooked(hook, with_kwargs=True))
    assert not behave_alike(hooked(hook), hooked(hook, "register_full_backward_hook"))

"""How many examples a batch has, in whatever containers, and cutting them out."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.rows import UnclearRows, cut, rows

X, Y = torch.arange(36.0).reshape(12, 3), torch.arange(12.0)[:, None]
Pair = namedtuple("Pair", "x y")


class Encoding(UserDict):
    """As transformers' BatchEncoding: its values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Output(OrderedDict):
    """As transformers' ModelOutput: a subclass of a dict."""


class ReadOnly(Mapping):
    def __init__(self, values):
        self._values = dict(values)

    def __getitem__(self, key):
        return self._values[key]

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any
    kind: str = "train"

    def __getitem__(self, name):
        return getattr(self, name)


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    y: Any

    def __getitem__(self, name):
        return getattr(self, name)


CONTAINERS = {
    "dict": {"x": X, "y": Y},
    "UserDict": UserDict(x=X, y=Y),
    "Encoding": Encoding(x=X, y=Y),
    "Output": Output(x=X, y=Y),
    "ReadOnly": ReadOnly({"x": X, "y": Y}),
    "proxy": MappingProxyType({"x": X, "y": Y}),
    "Frozen": Frozen(X, Y),
    "Slotted": Slotted(X, Y),
    "nested": UserDict(x=X, y=Y, more=Encoding(mask=X > 0, text=["a"] * 12)),
}


def loss(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean()


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_mapping_and_dataclass_is_a_batch(name):
    batch, model = CONTAINERS[name], nn.Linear(3, 1)
    whole = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.01)))
    parts = fl.pipe(loss, fl.grad, fl.accumulate(5), fl.update(fl.optim.sgd(0.01)))
    state = whole.init(model)
    expected, metrics = whole(state, {"x": X, "y": Y})
    for step in (whole, parts, fl.compile(whole, backend="aot_eager")):
        after, got = step(step.init(state), batch)
        assert float(got["loss"].weight) == 12
        assert float(got["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
        torch.testing.assert_close(after.params["weight"], expected.params["weight"])


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_loss_is_given_the_class_that_came(name):
    seen = []

    def spying(model, batch):
        seen.append(type(batch))
        return loss(model, batch)

    batch = CONTAINERS[name]
    step = fl.pipe(spying, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.01)))
    for each in (step, fl.compile(step, backend="aot_eager")):
        each(each.init(nn.Linear(3, 1)), batch)
    if name != "proxy":
        assert set(seen) == {type(batch)}


def test_a_compiled_step_tells_classes_apart():
    def which(model, batch):
        return loss(model, batch) * (2 if isinstance(batch, Encoding) else 1)

    step = fl.pipe(which, fl.grad, fl.update(fl.optim.sgd(0.01)))
    fast = fl.compile(step, backend="aot_eager")
    state = fast.init(nn.Linear(3, 1))
    values = [float(fast(state, kind(x=X, y=Y))[1]["loss"]) for kind in (UserDict, Encoding)]
    assert values[1] == pytest.approx(2 * values[0]) and fast.graphs == 2


def test_a_mapping_that_cannot_be_made_again_says_so():
    class Odd(UserDict):
        def __init__(self, x, y):
            super().__init__(x=x, y=y)

    step = fl.pipe(loss, fl.grad, fl.accumulate(2))
    assert float(fl.grad(loss)(step.init(nn.Linear(3, 1)), Odd(X, Y))[1].weight) == 12
    with pytest.raises(TypeError, match=r"Odd cannot be made from a dict.*dict\(batch\)"):
        step(step.init(nn.Linear(3, 1)), Odd(X, Y))


IMAGES = [torch.full((3, 4, 4), float(i)) for i in range(5)]
RAGGED = [torch.zeros(3, 4 + i, 4) for i in range(5)]
FIVE = torch.arange(5)

SIZES = {
    "tuple": ((X, Y), 12),
    "list, as a DataLoader makes it": ([X, Y], 12),
    "one column": ([X], 12),
    "pairs of images": ([torch.zeros(8, 3, 4, 4), torch.ones(8, 3, 4, 4)], 8),
    "triplets": ([torch.zeros(12, 3)] * 3, 12),
    "many columns": ([X, Y, X[:, :2], X[:, 0], Y], 12),
    "many numbers": ([torch.zeros(12)] * 5, 12),
    "a tuple of many columns": ((X,) * 5, 12),
    "a list of inputs": (([X, X], Y), 12),
    "two of two": (([X[:2], X[:2]], Y[:2]), 2),
    "images and labels": ((IMAGES, FIVE), 5),
    "ragged images and labels": ({"image": RAGGED, "label": FIVE}, 5),
    "images, targets, ids": ((RAGGED, [{"boxes": torch.zeros(i, 4)} for i in range(5)], FIVE), 5),
    "texts and labels": ((["a", "b", "c", "d", "e"], FIVE), 5),
    "tuples of texts": ([("a",) * 5, FIVE], 5),
    "Nones": ({"x": FIVE, "y": [None] * 5}, 5),
    "names of classes": ({"x": FIVE, "classes": ["cat", "dog"]}, 5),
    "texts alone": (["a", "b", "c"], 3),
    "texts by name": ({"prompt": ["a", "b"], "answer": ("c", "d")}, 2),
    "numbers": ({"x": torch.tensor(1.0), "y": 2.0, "name": "a"}, None),
    "numpy": ((np.zeros((4, 2)), np.zeros(4, dtype=object)), 4),
    "none at all": (torch.zeros(0, 3), 0),
    "one": (X[:1], 1),
    "empty lists": ((torch.zeros(0), []), 0),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    batch, size = SIZES[name]
    assert rows(batch) == size


UNCLEAR = {
    "images": (IMAGES, "the batch is a list of 5 tensors f32.3,4,4., which may be 5 examples or"),
    "images of several sizes": (RAGGED, "may be 5 examples"),
    "images and texts": ((IMAGES, ["a"] * 5), "0 is a list of 5 tensors"),
    "images and boxes": ((RAGGED, [{"boxes": torch.zeros(3, 4)}] * 5), "may be 5 examples"),
    "two sizes": ({"x": X, "y": Y[:5]}, "x has 12, y has 5"),
    "images and other labels": ((IMAGES, torch.arange(4)), "1 has 4, 0/0 has 3"),
    "other texts": ({"a": ["x", "y"], "b": ["z"]}, "a has 2, b has 1"),
    "many sizes": ([torch.zeros(i) for i in range(20)], "0 has 0, .*, 14 more$"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_cannot_be_told_is_asked_for(name):
    batch, message = UNCLEAR[name]
    with pytest.raises(UnclearRows, match=message):
        rows(batch)
    state = fl.grad(lambda m, b: m(X).mean()).init(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"fl\.Mean\(total, weight\)"):
        fl.evaluate(lambda m, b: {"a": 1.0}, state, [batch])
    with pytest.raises(ValueError, match=r"fl\.data\.Micro"):
        fl.pipe(lambda m, b: m(X).mean(), fl.grad, fl.accumulate(2))(state, batch)


def test_a_weight_answers_it():
    state = fl.grad(lambda m, b: m(X).mean()).init(nn.Linear(3, 1))

    def mean(model, batch):
        return {"mean": fl.Mean(sum(image.mean() for image in batch), len(batch))}

    assert fl.evaluate(mean, state, [IMAGES, IMAGES[:1]]) == {"mean": pytest.approx(10 / 6)}


@pytest.mark.parametrize("name", SIZES)
def test_the_parts_are_the_whole(name):
    batch, size = SIZES[name]
    if not size or name == "numpy":
        return
    bounds = [0, size // 2, size]
    parts = [cut(batch, a, b, size) for a, b in itertools.pairwise(bounds)]
    assert [rows(part) for part in parts] == [size // 2, size - size // 2] or size == 1
    assert fl.tree_equal(cut(batch, 0, size, size), batch)


def test_lists_are_cut_with_the_batch():
    batch = Encoding(
        x=FIVE, image=RAGGED, text=["a", "b", "c", "d", "e"], inputs=[FIVE, FIVE * 2], split="train"
    )
    part = cut(batch, 1, 3, 5)
    assert type(part) is Encoding and part.split == "train" and part.text == ["b", "c"]
    assert [tuple(image.shape) for image in part.image] == [(3, 5, 4), (3, 6, 4)]
    assert [x.tolist() for x in (part.x, *part.inputs)] == [[1, 2], [1, 2], [2, 4]]
    two = cut(([X[:2], X[:2]], Y[:2]), 0, 1, 2)
    assert [tuple(x.shape) for x in two[0]] == [(1, 3), (1, 3)], "columns, even if two of two"


def test_an_unknown_object_is_not_cut():
    with pytest.raises(UnclearRows, match="there is a object"):
        cut({"x": FIVE, "graph": object()}, 0, 2, 5)
    assert len(cut({"x": FIVE, "graph": [object()] * 5}, 0, 2, 5)["graph"]) == 2


def test_accumulating_over_lists_is_one_big_batch():
    def over(model, batch):
        outs = [model(image.mean((1, 2))).square() for image in batch["image"]]
        return torch.stack(outs).mean() * (1 if all(batch["text"]) else 0)

    batch = {"image": RAGGED, "text": list("abcde"), "label": FIVE}
    batch["image"] = [torch.randn_like(image) for image in RAGGED]
    one, parts = fl.pipe(over, fl.grad), fl.pipe(over, fl.grad, fl.accumulate(3))
    state = one.init(nn.Linear(3, 1))
    torch.testing.assert_close(
        dict(one(state, batch)[1].mean.items()), dict(parts(state, batch)[1].mean.items())
    )

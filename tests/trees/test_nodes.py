"""Trees are pytrees everywhere, with static fields decided by annotation."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optree
import pytest
import torch
from torch.utils import _pytree as torch_pytree

import fnloop as fl
from fnloop.trees.paths import tree_paths


class Colour(enum.Enum):
    RED = 1


@fl.tree
class Everything:
    tensor: torch.Tensor
    number: float
    either: int | float
    anything: Any
    count: int = 3
    flag: bool = True
    word: str | None = "w"
    function: Callable[[int], int] = abs
    dtype: torch.dtype = torch.float32
    sizes: tuple[int, ...] = (1, 2)
    choice: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    path: Path = Path("x")
    chosen: Any = fl.static(5)


def everything():
    return Everything(torch.ones(2), 1.0, 2, {"b": torch.zeros(1), "a": 3.0})


def test_children_are_decided_by_annotation_not_by_value():
    assert tree_paths(everything()) == ["tensor", "number", "either", "anything/a", "anything/b"]


def test_it_is_a_pytree_in_optree_and_in_torch():
    value = everything()
    assert len(optree.tree_leaves(value)) == len(torch_pytree.tree_leaves(value)) == 5
    leaves, structure = torch_pytree.tree_flatten(value)
    assert torch_pytree.tree_unflatten(leaves, structure) == value
    paths = [torch_pytree.keystr(path) for path, _ in torch_pytree.tree_flatten_with_path(value)[0]]
    assert paths[:2] == [".tensor", ".number"]
    assert fl.tree_map(lambda leaf: leaf, value) == value


def test_it_goes_through_torch_func():
    @fl.tree
    class Line:
        slope: torch.Tensor
        order: int = 1

        def __call__(self, x):
            return self.slope * x**self.order

    line = Line(torch.tensor(2.0), order=2)
    grads = torch.func.grad(lambda f: f(torch.tensor(3.0)))(line)
    assert isinstance(grads, Line) and float(grads.slope) == 9
    many = Line(torch.tensor([1.0, 2.0]), order=2)
    assert torch.func.vmap(lambda f: f(torch.tensor(3.0)))(many).tolist() == [9, 18]


def test_placeholders_do_not_meet_the_checks_of_the_constructor():
    @fl.tree
    class Positive:
        value: Any

        def __post_init__(self):
            if not float(self.value) > 0:
                raise ValueError("must be positive")

    with pytest.raises(ValueError, match="positive"):
        Positive(-1.0)
    assert fl.tree_map(lambda _: object(), Positive(1.0)) is not None
    assert torch.func.vmap(lambda p: p.value * 2)(
        Positive(torch.tensor(3.0).expand(1))
    ).tolist() == [6]


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        everything().count = 4


def test_equality_and_hash_are_bitwise():
    assert everything() == everything()
    assert hash(everything()) == hash(everything())
    assert everything() != dataclasses.replace(everything(), count=4)
    assert everything() != dataclasses.replace(everything(), tensor=torch.ones(2) + 1e-7)
    assert everything() != dataclasses.replace(everything(), tensor=torch.ones(2).double())


def test_annotations_that_cannot_be_resolved():
    class Local:
        pass

    @fl.tree
    class Holder:
        child: Local
        steps: int = 1

    assert tree_paths(Holder(torch.ones(1))) == ["child"]


def test_it_prints_what_is_not_default():
    assert repr(dataclasses.replace(everything(), count=4)) == (
        "Everything(tensor=f32[2], number=1.0, either=2, anything={'b': f32[1], 'a': 3.0}, "
        "count=4, "
        "function=abs, dtype=torch.float32, sizes=(1, 2), colour=<Colour.RED: 1>, "
        "path=PosixPath('x'))"
    )


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (fl.base.GradStage, "kind"),
        (fl.base.GradStage, "trained"),
        (fl.base.StepStage, "describe"),
        (fl.base.Callback, "needs"),
        (fl.optim.Optimizer, "init"),
        (fl.metrics.Metric, "value"),
    ],
)
def test_a_field_does_not_hide_what_its_base_needs(base, name):
    taken = type("Mine", (base,), {"__annotations__": {name: Any}, name: 1})
    with pytest.raises(TypeError, match=f"Mine has a field '{name}', and .* needs that name"):
        fl.tree(taken)
    fl.tree(type("Mine", (base,), {"__annotations__": {f"{name}_": Any}, f"{name}_": 1}))

"""The skeleton of a model that is a tree (`fl.tree`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optree
from torch import Tensor

from fnloop.trees.paths import tree_items
from fnloop.values.close_look import CloseLook
from fnloop.values.mode import set_training
from fnloop.values.mode import training as training_now
from fnloop.values.parameter_attributes import Attributes

T = TypeVar("T")


class TreeSkeleton:
    """The skeleton of a tree with ``__call__``: its structure and its non-tensor leaves."""

    def __init__(self, model: Any) -> None:
        self._structure = optree.tree_structure(model)
        self._kind = type(model).__name__
        self.leaves: list[tuple[str | None, Any]] = []  # (tensor's name, or None; static value)
        self._params: list[str] = []
        first: dict[int, str] = {}
        for path, leaf in tree_items(model):
            if isinstance(leaf, Tensor):
                name = first.setdefault(id(leaf), path.replace("/", "."))
                if (leaf.is_floating_point() or leaf.is_complex()) and name not in self._params:
                    self._params.append(name)
                self.leaves.append((name, None))
            else:
                self.leaves.append((None, leaf))
        self.trainable = tuple(self._params)
        self.attributes: Attributes = {}
        self.statistics: dict[str, tuple[str, str]] = {}
        self._look = CloseLook()

    def call(
        self,
        function: Callable[[Any], T],
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        training: bool,
        user: Any = None,
        frozen: tuple[str, ...] = (),  # a tree has one mode for all of it
    ) -> tuple[T, dict[str, Tensor]]:
        user = function if user is None else user
        before, look = training_now(), self._look.due(user, training)
        set_training(training)
        try:
            model = self._assemble({**buffers, **params})
            if look is None:
                return function(model), dict(buffers)
            result = self._look.call(function, model, params, user, training, look)
            return result, dict(buffers)
        finally:
            set_training(before)

    def build(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Any:
        return self._assemble({n: t.detach().clone() for n, t in {**buffers, **params}.items()})

    def _assemble(self, tensors: Mapping[str, Tensor]) -> Any:
        leaves = [value if name is None else tensors[name] for name, value in self.leaves]
        return optree.tree_unflatten(self._structure, leaves)

    def behaves_like(self, other: Any) -> bool:
        return self == other

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, TreeSkeleton)
            and self._structure == other._structure
            and self.leaves == other.leaves
        )

    def __hash__(self) -> int:
        return hash((self._structure, tuple(name for name, _ in self.leaves)))

    def __str__(self) -> str:
        return self._kind

    __repr__ = __str__

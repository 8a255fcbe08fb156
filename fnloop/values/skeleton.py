"""A model without its tensors, and how to run code on it with a state's tensors in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from fnloop.trees.nodes import is_tree
from fnloop.trees.paths import tree_items
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.tree_skeleton import TreeSkeleton

T = TypeVar("T")


class Skeleton(Protocol):
    """What `State.skeleton` offers. It compares and hashes by what it is, not by identity."""

    trainable: tuple[str, ...]
    """Names of the parameters that require gradients, in the model's order."""

    def call(
        self,
        function: Callable[[Any], T],
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        training: bool,
    ) -> tuple[T, dict[str, Tensor]]:
        """Return ``function(model)``, and the buffers after it; nothing given is changed."""
        ...

    def build(self, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        """A new model that owns copies of these tensors."""
        ...

    def behaves_like(self, other: Any) -> bool:
        """Whether an equal skeleton computes the same: also its plain attributes are the same."""
        ...

    def __str__(self) -> str: ...


def dissect(model: Any) -> tuple[Skeleton, dict[str, Tensor], dict[str, Tensor]]:
    """Take a model apart: its skeleton, and copies of its parameters and of its buffers."""
    if isinstance(model, nn.Module):
        skeleton = ModuleSkeleton(model)
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        return skeleton, params, buffers
    tree = TreeSkeleton(model)
    tensors: dict[str, Tensor] = {}
    for path, leaf in tree_items(model):
        if isinstance(leaf, Tensor):
            tensors.setdefault(path.replace("/", "."), leaf)
    names = {name for name, _ in tree.leaves if name is not None}
    copies = {name: t.detach().clone() for name, t in tensors.items() if name in names}
    params = {name: copies[name] for name in tree.trainable}
    return tree, params, {name: t for name, t in copies.items() if name not in params}


def is_model(value: Any) -> bool:
    """Whether `value` is a model (an ``nn.Module``, or a tree that can be called)."""
    return isinstance(value, nn.Module) or (is_tree(value) and callable(value))

"""Skeletons: models without their tensors, which run on the tensors of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from fnloop.trees.nodes import is_tree
from fnloop.trees.paths import tree_items
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.parameter_attributes import Attributes
from fnloop.values.tree_skeleton import TreeSkeleton

T = TypeVar("T")


class Skeleton(Protocol):
    """The interface of `State.skeleton`. Equality and hash go by structure, not identity."""

    trainable: tuple[str, ...]
    """Names of the parameters that require gradients, in the model's order."""
    attributes: Attributes
    """What the model has set on its parameters: ``p._no_weight_decay = True``."""
    statistics: dict[str, tuple[str, str]]
    """Names of the buffers of running means and variances, by the path of each BatchNorm that keeps
    some and does so in training."""

    def call(
        self,
        function: Callable[[Any], T],
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        training: bool,
        user: Any = None,
        frozen: tuple[str, ...] = (),
    ) -> tuple[T, dict[str, Tensor]]:
        """Return ``function(model)`` and the buffers after it; the inputs are not modified.

        Args:
            function: What to call with the model.
            params: The parameters by name.
            buffers: The buffers by name.
            training: Whether to run in training mode.
            user: The function that the user wrote, if `function` wraps it; for messages, and its
                first call is looked at closely.
            frozen: Names of parameters. A module all of whose parameters are among them runs in
                evaluation mode, with all modules in it.

        Raises:
            RuntimeError: It writes to a parameter (seen at a close look), or replaces one.
            ValueError: It adds a parameter or a buffer.
        """
        ...

    def build(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Any:
        """Build a new model from copies of these tensors."""
        ...

    def behaves_like(self, other: Any) -> bool:
        """Whether `other` is equal and its modules' plain attributes are equal too."""
        ...

    def __str__(self) -> str: ...


def dissect(model: Any) -> tuple[Skeleton, dict[str, Tensor], dict[str, Tensor]]:
    """Split a model into its skeleton and copies of its parameters and buffers, by name."""
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

"""Gradient transforms: what stands before an optimizer in a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop.optim.base import Makes, Memory, Optimizer, Step, Tensors, Transform, at, named, values
from fnloop.optim.patterns import Where, as_where, check_patterns, chosen
from fnloop.trees.nodes import static, tree


@tree
class clip_by_norm(Transform):
    """Scale all gradients down so that their norm, taken together, is at most `max_norm`.

    As ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al., 2013, algorithm 1).

    Args:
        max_norm: Largest Euclidean norm.
        name: Of its hyperparameters.

    >>> grads = {"w": torch.tensor([3.0, 4.0])}
    >>> clip_by_norm(1.0).update(grads, {}, grads, step=0)[0]
    {'w': tensor([0.6000, 0.8000])}
    """

    joint: ClassVar[bool] = True

    max_norm: Any
    name: str = "clip_by_norm"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        g = values(grads)
        factor = (at(self.max_norm, step) / (foreach.norm(g) + 1e-6)).clamp(max=1.0)
        return named(grads, foreach.mul(g, factor)), memory


@tree
class clip_by_value(Transform):
    """Cut every component of the gradients to ``[-limit, limit]``; ``clip_grad_value_``.

    Args:
        limit: Largest absolute value.
        name: Of its hyperparameters.

    >>> grads = {"w": torch.tensor([3.0, -0.5])}
    >>> clip_by_value(1.0).update(grads, {}, grads, step=0)[0]
    {'w': tensor([ 1.0000, -0.5000])}
    """

    joint: ClassVar[bool] = True

    limit: Any
    name: str = "clip_by_value"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        limit = at(self.limit, step)
        return named(grads, foreach.clamp(values(grads), -limit, limit)), memory


@tree
class add_decayed_weights(Transform):
    """Add ``weight_decay * parameter`` to the gradients: before `sgd`, the L2 penalty.

    Args:
        weight_decay: That factor.
        where: To which parameters, all if None: a function of a parameter's name and value, or
            names (of parameters or modules, or globs).
        name: Of its hyperparameters.

    Raises:
        ValueError: At `init`, a name fits no parameter.

    >>> params = {"w": torch.ones(1), "bias": torch.ones(1)}
    >>> decay = add_decayed_weights(0.1, where=lambda name, p: name != "bias")
    >>> decay.update(params, decay.init(params), params, step=0)[0]
    {'w': tensor([1.1000]), 'bias': tensor([1.])}
    """

    reported: ClassVar[tuple[str, ...]] = ("weight_decay",)

    weight_decay: Any
    where: Where | None = static(default=None)
    name: str = "add_decayed_weights"

    def __init__(
        self,
        weight_decay: Any,
        where: Callable[[str, Tensor], bool] | Iterable[str] | None = None,
        name: str = "add_decayed_weights",
    ) -> None:
        object.__setattr__(self, "weight_decay", weight_decay)
        object.__setattr__(self, "where", None if where is None else as_where(where))
        object.__setattr__(self, "name", name)

    @property
    def joint(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.where is None

    def memory(self, params: Tensors) -> dict[str, Any]:
        if isinstance(self.where, tuple):
            check_patterns(self.name, self.where, params)
        return {}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        names = list(params) if self.where is None else chosen(self.where, params)
        some = {name: params[name] for name in names}
        g = values({name: grads[name] for name in names})
        g = foreach.add(g, foreach.mul(values(some), at(self.weight_decay, step)))
        return {**grads, **named(some, g)}, memory


@tree
class scale_by(Transform):
    """Multiply gradients, or the updates of what stands before it.

    Args:
        factor: A number, tensor or schedule.
        name: Of its hyperparameters.

    >>> grads = {"w": torch.tensor([3.0])}
    >>> scale_by(-0.5).update(grads, {}, grads, step=0)[0]
    {'w': tensor([-1.5000])}
    """

    reported: ClassVar[tuple[str, ...]] = ("factor",)
    joint: ClassVar[bool] = True

    factor: Any
    name: str = "scale_by"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        return named(grads, foreach.mul(values(grads), at(self.factor, step))), memory


@tree
class freeze(Optimizer):
    """Leave the parameters as they are.

    Args:
        name: Of its (empty) memory.

    >>> params = {"w": torch.ones(1)}
    >>> freeze().update(params, {}, params, step=0)[0]
    {'w': tensor([0.])}
    """

    joint: ClassVar[bool] = True

    name: str = "freeze"

    @property
    def makes(self) -> Makes:
        return "zeros"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        return {name: torch.zeros_like(grad) for name, grad in grads.items()}, memory

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: bool | Tensor
    ) -> tuple[Tensors, Memory]:
        return params, memory

"""Gradient transforms, which precede an optimizer in a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor

from fnloop.optim.base import Makes, Memory, Optimizer, Step, Transform
from fnloop.optim.patterns import Where, as_where, check_patterns, chosen
from fnloop.schedules.base import at
from fnloop.schedules.ranges import Hyper, NonNegative, NormBound
from fnloop.trees.nodes import static, tree
from fnloop.values.choice import Flag
from fnloop.values.tensors import Tensors


@tree
class clip_by_norm(Transform):
    """Scale the gradients down so that their global norm is at most `max_norm`.

    Like ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al., 2013, algorithm 1). Gradients that the
    rest of the chain discards, as `freeze` does, do not count.

    Args:
        max_norm: Upper bound of the Euclidean norm of all gradients together.
        name: Prefix of its hyperparameters.

    >>> import torch
    >>> grads = Tensors({"w": torch.tensor([3.0, 4.0])})
    >>> dict(clip_by_norm(1.0).update(grads, {}, grads, step=0)[0])
    {'w': tensor([0.6000, 0.8000])}
    """

    by_value = True
    mixes: ClassVar[bool] = True

    max_norm: NormBound
    name: str = "clip_by_norm"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        g = grads.wide()
        factor = (at(self.max_norm, step) / (g.norm() + 1e-6)).clamp(max=1.0)
        return g.scale(factor), memory


@tree
class clip_by_value(Transform):
    """Clamp every gradient value to ``[-limit, limit]``; ``torch.nn.utils.clip_grad_value_``.

    Args:
        limit: Largest absolute value.
        name: Prefix of its hyperparameters.

    >>> import torch
    >>> grads = Tensors({"w": torch.tensor([3.0, -0.5])})
    >>> dict(clip_by_value(1.0).update(grads, {}, grads, step=0)[0])
    {'w': tensor([ 1.0000, -0.5000])}
    """

    by_value = True
    limit: NonNegative
    name: str = "clip_by_value"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        limit = at(self.limit, step)
        return grads.wide().clamp(-limit, limit), memory


@tree
class add_decayed_weights(Transform):
    """Add ``weight_decay * parameter`` to the gradients; before `sgd`, this is an L2 penalty.

    Args:
        weight_decay: The factor.
        where: The parameters to decay; None means all. A function ``(name, parameter) -> bool``, or
            patterns: names of parameters or modules, or globs.
        name: Prefix of its hyperparameters.

    Raises:
        ValueError: At `init`, a pattern matches no parameter.

    >>> import torch
    >>> params = Tensors({"w": torch.ones(1), "bias": torch.ones(1)})
    >>> decay = add_decayed_weights(0.1, where=lambda name, p: name != "bias")
    >>> dict(decay.update(params, decay.init(params), params, step=0)[0])
    {'w': tensor([1.1000]), 'bias': tensor([1.])}
    """

    by_value = True
    reported: ClassVar[tuple[str, ...]] = ("weight_decay",)

    weight_decay: NonNegative
    where: Where | None = static(default=None)
    name: str = "add_decayed_weights"

    def __init__(
        self,
        weight_decay: NonNegative,
        where: Callable[[str, Tensor], bool] | Iterable[str] | None = None,
        name: str = "add_decayed_weights",
    ) -> None:
        object.__setattr__(self, "weight_decay", weight_decay)
        object.__setattr__(self, "where", None if where is None else as_where(where))
        object.__setattr__(self, "name", name)

    def init_state(self, params: Tensors) -> dict[str, Any]:
        if isinstance(self.where, tuple):
            check_patterns(self.name, self.where, params)
        return {}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        names = params if self.where is None else chosen(self.where, params)
        g, decay = grads.wide(), at(self.weight_decay, step)
        some = g.select(names).add(params.select(names).wide().scale(decay))
        return g.updated(some), memory


@tree
class scale_by(Transform):
    """Multiply the gradients, or the updates of the optimizer before it in a chain.

    Args:
        factor: A number, tensor or schedule.
        name: Prefix of its hyperparameters.

    >>> import torch
    >>> grads = Tensors({"w": torch.tensor([3.0])})
    >>> dict(scale_by(-0.5).update(grads, {}, grads, step=0)[0])
    {'w': tensor([-1.5000])}
    """

    by_value = True
    reported: ClassVar[tuple[str, ...]] = ("factor",)
    factor: Hyper
    name: str = "scale_by"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        return grads.wide().scale(at(self.factor, step)), memory


@tree
class freeze(Optimizer):
    """Leave the parameters unchanged.

    Args:
        name: Key of its (empty) memory.

    >>> import torch
    >>> params = Tensors({"w": torch.ones(1)})
    >>> dict(freeze().update(params, {}, params, step=0)[0])
    {'w': tensor([0.])}
    """

    by_value = True
    name: str = "freeze"

    @property
    def makes(self) -> Makes:
        return "zeros"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        return grads.zeros(), memory

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        return params, memory

"""The protocol of optimizers, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop.trees.nodes import is_tree
from fnloop.values.packed import groups_of, joined, parted

Number: TypeAlias = float | Tensor
Step: TypeAlias = int | Tensor
Tensors: TypeAlias = dict[str, Tensor]
Memory: TypeAlias = dict[str, Any]
Makes: TypeAlias = Literal["updates", "gradients", "zeros"]


class Optimizer:
    """What every optimizer and every gradient transform is: a tree with these methods.

    A subclass is made by `fl.tree`; its fields are its hyperparameters, and where a number goes, a
    tensor or a schedule (`fl.schedules.cosine`, ...) goes. It defines `memory` and `update`, and
    `apply` where there is a fused kernel for it.

    Attributes:
        name: Under which its memory and its hyperparameters are found: ``"adamw.lr"``.
        reported: Hyperparameters that are reported, and can be scaled (`fl.scale`), even when they
            are constant. Those given by a schedule always are.
        joint: Whether it makes no difference to it that tensors are joined into one long vector:
            true for what treats every value alike, or all together. A compiled step then runs it
            once instead of once for each parameter.
    """

    name: str
    reported: ClassVar[tuple[str, ...]] = ()
    joint: ClassVar[bool] = False

    @property
    def makes(self) -> Makes:
        """What `update` returns: updates, or (a transform such as clipping) gradients still."""
        return "updates"

    def names(self) -> tuple[str, ...]:
        """The keys of its memory: its name, or those of its parts."""
        return (self.name,)

    def memory(self, params: Tensors) -> dict[str, Any]:
        """This transform's own memory before the first step: tensors, by name."""
        return {}

    def init(self, params: Tensors) -> Memory:
        """The memory before the first step, flat by transform name: ``{"adamw": {...}}``."""
        return {self.name: self.memory(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        """Turn mean gradients into updates (to be added to the parameters). Pure.

        Args:
            grads: Mean gradients by parameter name, float32 or wider.
            memory: As `init` made it; entries of other transforms are passed on untouched.
            params: Parameters by name, in the same order.
            step: Committed optimizer steps so far: an int, or int64[].
        """
        raise NotImplementedError

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: bool | Tensor
    ) -> tuple[Tensors, Memory]:
        """`update` and the addition in one; where `finite` is false nothing changes, to the bit.

        Agrees with `update`, and may use fused kernels on fresh copies.
        """
        if finite is False:
            return params, memory
        updates, new_memory = self.update(grads, memory, params, step)
        new_params = add_updates(params, updates)
        return keep_if(finite, new_params, params), keep_if(finite, new_memory, memory)

    def hyperparameters(self) -> dict[str, Any]:
        """Reported hyperparameters, by ``"<name>.<field>"``: numbers or schedules."""
        return {f"{self.name}.{field}": getattr(self, field) for field in self._reported()}

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        """A copy whose reported hyperparameters are numbers: the schedule at `step`, times `scale`.

        Args:
            step: Committed optimizer steps so far.
            scale: Multipliers by hyperparameter name; a missing one is 1.
        """
        fields = self._reported()
        changes: dict[str, Any] = {
            field: scaled(getattr(self, field), step, scale.get(f"{self.name}.{field}"))
            for field in fields
        }
        return replaced(self, **changes, _resolved=fields)

    def _reported(self) -> list[str]:
        # Where a schedule was, there is a number once it is resolved.
        if "_resolved" in self.__dict__:
            return self.__dict__["_resolved"]
        children: tuple[str, ...] = type(self).__tree_children__  # type: ignore[attr-defined]  # set by fl.tree
        return [
            field
            for field in children
            if field in self.reported or is_schedule(getattr(self, field))
        ]


class Transform(Optimizer):
    """An optimizer whose `update` gives gradients, for what is after it in a `fl.optim.chain`."""

    @property
    def makes(self) -> Makes:
        return "gradients"


def replaced(optimizer: Any, /, **changes: Any) -> Any:
    """A copy with other fields: ``dataclasses.replace`` without its checks, for the hot path."""
    new: Any = object.__new__(type(optimizer))
    new.__dict__.update(optimizer.__dict__)
    new.__dict__.update(changes)
    return new


def is_schedule(value: Any) -> bool:
    """Whether `value` is a hyperparameter that depends on the step."""
    return callable(value) and is_tree(value)


def at(value: Any, step: Step) -> Any:
    """A hyperparameter's value at `step`."""
    if type(value) is float:  # before the slower question: this runs several times in every step
        return value
    return value(step) if is_schedule(value) else value


def scaled(value: Any, step: Step, factor: Number | None) -> Any:
    """A hyperparameter's value at `step`, times `factor`; a constant zero stays a plain number."""
    number = at(value, step)
    if factor is None or is_zero(number):
        return number
    # In double precision, as Python multiplies where the factor is known.
    return number * (factor.double() if isinstance(factor, Tensor) else factor)


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is the number zero, so that what it scales can be left out."""
    return isinstance(value, (int, float)) and value == 0


def zeros_like(params: Tensors) -> Tensors:
    """Zeros by name; float32 for half-precision parameters."""
    return {
        name: torch.zeros_like(p, dtype=wide(p.dtype), memory_format=torch.preserve_format)
        for name, p in params.items()
    }


def counter(params: Tensors) -> Tensor:
    """float32[]: updates made so far, none; float32 because the fused kernels ask for it."""
    device = next(iter(params.values())).device if params else None
    return torch.zeros((), dtype=torch.float32, device=device)


def correction(beta: Number, count: Tensor) -> Tensor:
    """float64[]: ``1 - beta**count``, the weight of a running mean that began at zero."""
    # In float32 the difference would lose four digits at the first steps.
    return 1 - beta ** count.double()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that gradients and memory have for parameters of `dtype`."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def values(tensors: Tensors) -> list[Tensor]:
    """The tensors in order, half precision as float32."""
    return [t.to(wide(t.dtype)) for t in tensors.values()]


def descent(
    grads: Tensors, params: Tensors, weight_decay: Number = 0.0, maximize: bool = False
) -> list[Tensor]:
    """Gradients of what goes down: negated if `maximize`, plus those of the L2 penalty."""
    g = values(grads)
    if maximize:
        g = foreach.mul(g, -1.0)
    return g if is_zero(weight_decay) else foreach.add(g, foreach.mul(values(params), weight_decay))


def decayed(
    updates: list[Tensor], params: Tensors, lr: Number, weight_decay: Number
) -> list[Tensor]:
    """Updates with decoupled weight decay: ``- lr * weight_decay * parameter``."""
    if is_zero(weight_decay):
        return updates
    return foreach.add(updates, foreach.mul(values(params), -lr * weight_decay))


def add_updates(params: Tensors, updates: Tensors) -> Tensors:
    """``params + updates``, in the parameters' dtype."""
    old, changes = list(params.values()), [updates[name] for name in params]
    if all(u.dtype == p.dtype for u, p in zip(changes, old, strict=True)):
        new = foreach.add(old, changes)
    else:
        new = [(p.to(u.dtype) + u).to(p.dtype) for p, u in zip(old, changes, strict=True)]
    return dict(zip(params, new, strict=True))


def keep_if(finite: bool | Tensor, new: Any, old: Any) -> Any:
    """`new` where `finite`, else `old`: trees of tensors of the same structure."""
    if finite is True or new is old:
        return new
    if finite is False:
        return old
    if isinstance(new, dict) and (groups := groups_of(new)):
        units = keep_if(finite, joined(new, groups), joined(old, groups))
        return parted(units, groups, new)
    if isinstance(new, dict):
        return {key: keep_if(finite, value, old[key]) for key, value in new.items()}
    return torch.where(finite, new, old)


def named(names: Tensors, tensors: list[Tensor]) -> Tensors:
    """Tensors under the names of another dict."""
    return dict(zip(names, tensors, strict=True))

"""The protocol of optimizers, and what they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop.trees import is_tree

Number: TypeAlias = float | Tensor
Step: TypeAlias = int | Tensor
Tensors: TypeAlias = dict[str, Tensor]
Memory: TypeAlias = dict[str, Any]


class Optimizer:
    """What every optimizer and every gradient transform is: a tree with these methods.

    A subclass is made by `fl.tree`; its fields are its hyperparameters, and where a number goes, a
    tensor or a schedule (`fl.cosine`, ...) goes. It defines `memory` and `update`, and `apply`
    where there is a fused kernel for it.

    Attributes:
        name: Under which its memory and its hyperparameters are found: ``"adamw.lr"``.
        reported: Hyperparameters that are reported, and can be scaled (`fl.scale`), even when they
            are constant. Those given by a schedule always are.
    """

    name: str
    reported: ClassVar[tuple[str, ...]] = ()

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
        updates, new_memory = self.update(grads, memory, params, step)
        new_params = add_updates(params, updates)
        return keep_if(finite, new_params, params), keep_if(finite, new_memory, memory)

    def hyperparameters(self) -> dict[str, Any]:
        """Reported hyperparameters, by ``"<name>.<field>"``: numbers or schedules."""
        names = [
            field.name
            for field in dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
            if field.name in self.reported or is_schedule(getattr(self, field.name))
        ]
        return {f"{self.name}.{name}": getattr(self, name) for name in names}

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        """A copy whose reported hyperparameters are numbers: the schedule at `step`, times `scale`.

        Args:
            step: Committed optimizer steps so far.
            scale: Multipliers by hyperparameter name; a missing one is 1.
        """
        new: Any = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        for key, value in self.hyperparameters().items():
            number = at(value, step)
            new.__dict__[key.rpartition(".")[2]] = number * scale[key] if key in scale else number
        return new


def is_schedule(value: Any) -> bool:
    """Whether `value` is a hyperparameter that depends on the step."""
    return callable(value) and is_tree(value)


def at(value: Any, step: Step) -> Any:
    """A hyperparameter's value at `step`."""
    return value(step) if is_schedule(value) else value


def zeros_like(params: Tensors) -> Tensors:
    """Zeros by name; float32 for half-precision parameters."""
    return {
        name: torch.zeros_like(p, dtype=wide(p.dtype), memory_format=torch.preserve_format)
        for name, p in params.items()
    }


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that gradients and memory have for parameters of `dtype`."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def add_updates(params: Tensors, updates: Tensors) -> Tensors:
    """``params + updates``, in the parameters' dtype."""
    values, changes = list(params.values()), [updates[name] for name in params]
    if all(u.dtype == p.dtype for u, p in zip(changes, values, strict=True)):
        new = foreach.add(values, changes)
    else:
        new = [(p.to(u.dtype) + u).to(p.dtype) for p, u in zip(values, changes, strict=True)]
    return dict(zip(params, new, strict=True))


def keep_if(finite: bool | Tensor, new: Any, old: Any) -> Any:
    """`new` where `finite`, else `old`: trees of tensors of the same structure."""
    if finite is True:
        return new
    if finite is False:
        return old
    if isinstance(new, dict):
        return {key: keep_if(finite, value, old[key]) for key, value in new.items()}
    return new if new is old else torch.where(finite, new, old)


def named(names: Tensors, values: list[Tensor]) -> Tensors:
    """Values under the names of another dict."""
    return dict(zip(names, values, strict=True))


def fused_on(tensors: list[Tensor]) -> bool:
    """Whether torch's fused optimizer kernels can take these tensors."""
    return bool(tensors) and all(
        t.device.type in ("cpu", "cuda") and t.dtype in (torch.float32, torch.float64) and t.layout == torch.strided
        for t in tensors
    )



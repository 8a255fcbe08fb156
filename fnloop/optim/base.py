"""The protocol of optimizers, and what they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from fnloop.trees.nodes import is_tree
from fnloop.trees.show import short
from fnloop.values.choice import Flag, select
from fnloop.values.tensors import Tensors

Number: TypeAlias = float | Tensor
Step: TypeAlias = int | Tensor
Memory: TypeAlias = dict[str, Any]
Makes: TypeAlias = Literal["updates", "gradients", "zeros"]


class Optimizer:
    """What every optimizer and every gradient transform is: a tree with these methods.

    A subclass is made by `fl.tree`; its fields are its hyperparameters, and where a number goes, a
    tensor or a schedule (`fl.schedules.cosine`, ...) goes. It defines `init_state` and `update`,
    in the methods of `fl.Tensors`: it then runs eager, compiled, vmapped and differentiated. It may
    define `apply` where there is a fused kernel for it.

    Attributes:
        name: Under which its memory and its hyperparameters are found: ``"adamw.lr"``.
        reported: Hyperparameters that are reported, and can be scaled (`fl.scale`), even when they
            are constant. Those given by a schedule always are.
    """

    name: str
    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    @property
    def makes(self) -> Makes:
        """What `update` returns: updates, or (a transform such as clipping) gradients still."""
        return "updates"

    def names(self) -> tuple[str, ...]:
        """The keys of its memory: its name, or those of its parts."""
        return (self.name,)

    def init_state(self, params: Tensors) -> dict[str, Any]:
        """Its own memory before the first step: tensors, by name."""
        return {}

    def init(self, params: Tensors) -> Memory:
        """The memory before the first step, flat by transform name: ``{"adamw": {...}}``."""
        check_named(params)
        return {self.name: self.init_state(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        """Turn mean gradients into updates (to be added to the parameters). Pure.

        Args:
            grads: Mean gradients, float32 or wider.
            memory: As `init` made it; entries of other transforms are passed on untouched.
            params: Parameters of the same names.
            step: Committed optimizer steps so far: an int, or int64[].
        """
        raise NotImplementedError

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        """`update` and the addition in one; where `finite` is false nothing changes, to the bit.

        Agrees with `update`, and may use fused kernels on fresh copies.
        """
        if finite is False:
            return params, memory
        updates, new_memory = self.update(grads, memory, params, step)
        new_params = params.add(params.like(updates))
        return new_params.where(finite, params), select(finite, new_memory, memory)

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
        changes: dict[str, Any] = {}
        for field in fields:
            value = getattr(self, field)
            number = scaled(value, step, scale.get(f"{self.name}.{field}"))
            if number is not value:
                changes[field] = number
        return replaced(self, **changes, _shown=fields) if changes else self

    def at(self, step: Step, *fields: str) -> list[Any]:
        """The values of some hyperparameters at `step`."""
        return [at(getattr(self, field), step) for field in fields]

    def _reported(self) -> list[str]:
        # Found once: where a schedule was, there is a number once it is resolved.
        if "_shown" in self.__dict__:
            return self.__dict__["_shown"]
        children: tuple[str, ...] = type(self).__tree_children__  # type: ignore[attr-defined]  # set by fl.tree
        self.__dict__["_shown"] = found = [
            field
            for field in children
            if field in self.reported or is_schedule(getattr(self, field))
        ]
        return found


class Transform(Optimizer):
    """An optimizer whose `update` gives gradients, for what stands after it in a chain."""

    reported: ClassVar[tuple[str, ...]] = ()

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
    if factor is None or is_zero(number) or (isinstance(factor, float) and factor == 1.0):
        return number
    # In double precision, as Python multiplies where the factor is known.
    return number * (factor.double() if isinstance(factor, Tensor) else factor)


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is the number zero, so that what it scales can be left out."""
    return isinstance(value, (int, float)) and value == 0


def counter(params: Tensors) -> Tensor:
    """float32[]: updates made so far, none; float32 because the fused kernels ask for it."""
    return torch.zeros((), dtype=torch.float32, device=params.device)


def correction(beta: Number, count: Tensor) -> Tensor:
    """float64[]: ``1 - beta**count``, the weight of a running mean that began at zero."""
    # In float32 the difference would lose four digits at the first steps.
    return 1 - beta ** count.double()


def descent(
    grads: Tensors, params: Tensors, weight_decay: Number = 0.0, maximize: bool = False
) -> Tensors:
    """Gradients of what goes down: negated if `maximize`, plus those of the L2 penalty."""
    g = grads.wide()
    if maximize:
        g = g.scale(-1.0)
    return g if is_zero(weight_decay) else g.add(params.wide().scale(weight_decay))


def decayed(updates: Tensors, params: Tensors, lr: Number, weight_decay: Number) -> Tensors:
    """Updates with decoupled weight decay: ``- lr * weight_decay * parameter``."""
    if is_zero(weight_decay):
        return updates
    return updates.add(params.wide().scale(-lr * weight_decay))


def narrowed(memory: Any, gone: Collection[str]) -> Any:
    """Memory without the tensors of some parameters."""
    if isinstance(memory, Tensors):
        return memory.select([name for name in memory if name not in gone])
    if isinstance(memory, dict):
        return {key: narrowed(value, gone) for key, value in memory.items()}
    return memory


def widened(memory: Any, old: Any) -> Any:
    """The inverse of `narrowed`: with the tensors of `old` where they were left out."""
    if isinstance(memory, Tensors) and isinstance(old, Tensors):
        return old.updated(memory)
    if isinstance(memory, dict) and isinstance(old, dict):
        return {k: widened(v, old[k]) if k in old else v for k, v in memory.items()}
    return memory


def check_named(params: Any) -> None:
    """Raise if parameters are not given as named tensors.

    Raises:
        TypeError: They are a dict, say.
    """
    if not isinstance(params, Tensors):
        raise TypeError(
            f"An optimizer takes parameters as fl.Tensors, such as state.params, and was given "
            f"{type(params).__name__}: fl.Tensors({{'w': ...}})."
        )


def refuse_complex(owner: str, params: Tensors) -> None:
    """Raise if a parameter is complex.

    Raises:
        TypeError: For an optimizer that has no meaning for complex numbers.
    """
    found = [f"{name} {short(p)}" for name, p in params.items() if p.is_complex()]
    if found:
        raise TypeError(
            f"{owner} is not defined for complex parameters ({', '.join(found[:4])}). Give them "
            "to another optimizer: fl.optim.by_label(...), or fl.optim.adam() for all."
        )

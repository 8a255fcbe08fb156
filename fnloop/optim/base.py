"""The base classes of optimizers and gradient transforms, and shared helpers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from fnloop.optim.pieces import updates_of
from fnloop.schedules.base import at, is_schedule
from fnloop.trees.show import short
from fnloop.values.choice import Flag, select
from fnloop.values.fused_update import FusedUpdate
from fnloop.values.tensors import Tensors

Number: TypeAlias = float | Tensor
Step: TypeAlias = int | Tensor
Memory: TypeAlias = dict[str, Any]
Evaluate: TypeAlias = Callable[[Tensors], tuple[Tensor, Tensors]]
"""The loss, float64[], and its mean gradient at other parameters: same batch, same randomness."""
Makes: TypeAlias = Literal["updates", "gradients", "zeros"]


class Optimizer:
    """Base class of optimizers and gradient transforms.

    Decorate a subclass with `fl.tree`. Its fields are its hyperparameters; each may be a number, a
    tensor or a schedule (`fl.schedules.cosine`, ...). Define `init_state` and `update` with the
    methods of `fl.Tensors`, so that they run eagerly, compiled, vmapped and differentiated. Define
    `fused` too if there is a fused kernel.

    Attributes:
        name: Key of its memory and prefix of its hyperparameters: ``"adamw.lr"``.
        reported: Hyperparameters that are reported and can be scaled (`fl.scale`) even if they are
            constant. Those given by a schedule always are.
        mixes: Whether a parameter's gradient has an influence on other parameters, as in clipping
            by the norm of all. It then sees zeros for the gradients that the rest of its chain
            discards.
        by_value: Whether what it computes for one value of a parameter depends on the other values
            through `fl.Tensors.norm` and the like alone. Then it runs on the pieces of parameters
            that are divided among ranks (`fl.shard`); else it is given whole tensors, gathered.
        draws: Whether it draws random numbers: in a step ``torch.randn_like`` and the like are
            then a function of the state. Draw in `fl.Tensors.map_named`, for a parameter at a time,
            and not `by_value`: so all layouts and all ranks draw the same.
    """

    explains_keywords: ClassVar[bool] = True
    name: str
    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    mixes: ClassVar[bool] = False
    by_value: ClassVar[bool] = False
    evaluates: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @property
    def makes(self) -> Makes:
        """What `update` returns: ``"updates"``; ``"gradients"`` if it transforms them, as clipping
        does; ``"zeros"`` if it leaves parameters alone.
        """
        return "updates"

    def discards(self, params: Tensors) -> Collection[str]:
        """The parameters whose gradients it does not use, because it leaves them alone."""
        return params.names if self.makes == "zeros" else ()

    def names(self) -> tuple[str, ...]:
        """The keys of its memory: its name, or the names of its parts."""
        return (self.name,)

    def init_state(self, params: Tensors) -> dict[str, Any]:
        """Its initial memory: `Tensors` and tensors by name."""
        return {}

    def init(self, params: Tensors) -> Memory:
        """The initial memory, a flat dict by optimizer name: ``{"adamw": {...}}``.

        Raises:
            TypeError: `params` is not `fl.Tensors`.
        """
        check_named(params)
        return {self.name: self.init_state(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        """Compute the updates, which are added to the parameters, from mean gradients. Pure.

        Args:
            grads: Mean gradients, float32 or wider.
            memory: Memory made by `init`. Entries of other optimizers are returned unchanged.
            params: Parameters with the same names as `grads`.
            step: Committed optimizer steps so far: an int; float64[] where it is not known.

        Returns:
            The updates (float32 or wider) and the new memory.
        """
        raise NotImplementedError

    def fused(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> FusedUpdate | None:
        """The same as `update`, by a fused kernel; None if there is none for these tensors."""
        return None

    @property
    def has_fused(self) -> bool:
        """Whether `apply` is the update that `fused` returns, if it returns one."""
        own = type(self)
        return own.fused is not Optimizer.fused and own.apply is Optimizer.apply

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        """The new parameters and memory. If not `finite`, both stay unchanged, bit for bit."""
        if finite is False:
            return params, memory
        if (fused := self.fused(grads, memory, params, step, finite)) is not None:
            return fused.on_copies()
        updates, new_memory = updates_of(self, grads, memory, params, step)
        new_params = params.add(params.like(updates))
        return new_params.where(finite, params), select(finite, new_memory, memory)

    def search(
        self,
        evaluate: Evaluate,
        loss: Tensor,
        grads: Tensors,
        memory: Memory,
        params: Tensors,
        step: Step,
        finite: Flag,
    ) -> tuple[Tensors, Memory]:
        """`apply` of an optimizer that `evaluates`.

        Args:
            evaluate: Loss and mean gradient at other parameters, named as `params`.
            loss: The loss at `params`, float64[].
            grads: Its mean gradient, of those parameters that the loss reaches.
            memory: Memory made by `init`.
            params: All parameters that are trained.
            step: Committed optimizer steps so far: an int; float64[] where it is not known.
            finite: If not, parameters and memory stay unchanged, bit for bit.

        Returns:
            The new parameters and memory.
        """
        raise NotImplementedError

    def hyperparameters(self) -> dict[str, Any]:
        """The reported hyperparameters by ``"<name>.<field>"``: numbers or schedules."""
        return {name: getattr(self, field) for field, name in self._reported().items()}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        """What it has measured in its last update, which is reported: numbers by name."""
        return {}

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        """A copy whose reported hyperparameters are numbers: values at `step` times `scale`.

        Args:
            step: Committed optimizer steps so far.
            scale: Multipliers by hyperparameter name; default 1.
        """
        fields = self._reported()
        changes: dict[str, Any] = {}
        for field, name in fields.items():
            value, factor = getattr(self, field), scale.get(name)
            if type(value) is float and type(factor) is float and factor == 1.0:
                continue  # the usual case
            number = scaled(value, step, factor)
            if number is not value:
                changes[field] = number
        return replaced(self, **changes, _shown=fields) if changes else self

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy in which hyperparameters have other values, numbers or schedules.

        Args:
            values: By the names of `hyperparameters`; names of others are passed over.
        """
        named = self._reported().items()
        changes = {field: values[name] for field, name in named if name in values}
        return replaced(self, **changes) if changes else self

    def at(self, step: Step, *fields: str) -> list[Any]:
        """The values of some hyperparameters at `step`."""
        values = list(map(getattr, itertools.repeat(self), fields))
        if set(map(type, values)) == _FLOATS:  # the usual case
            return values
        return [at(value, step) for value in values]

    def _reported(self) -> dict[str, str]:
        """The names of its reported hyperparameters, by field."""
        # Cached, because `resolve` replaces schedules by numbers.
        if "_shown" in self.__dict__:
            return self.__dict__["_shown"]
        children: tuple[str, ...] = type(self).__tree_children__  # type: ignore[attr-defined]  # set by fl.tree
        self.__dict__["_shown"] = found = {
            field: f"{self.name}.{field}"
            for field in children
            if field in self.reported or is_schedule(getattr(self, field))
        }
        return found


_FLOATS = {float}


class Transform(Optimizer):
    """Base class of gradient transforms: `update` returns gradients for the rest of a chain."""

    reported: ClassVar[tuple[str, ...]] = ()

    @property
    def makes(self) -> Makes:
        return "gradients"


def replaced(optimizer: Any, /, **changes: Any) -> Any:
    """A copy with changed fields: ``dataclasses.replace`` without checks, for the hot path."""
    new: Any = object.__new__(type(optimizer))
    new.__dict__.update(optimizer.__dict__)
    new.__dict__.update(changes)
    return new


def scaled(value: Any, step: Step, factor: Number | None) -> Any:
    """A hyperparameter's value at `step`, times `factor`; the number zero is returned unchanged."""
    number = at(value, step)
    if factor is None or is_zero(number) or (isinstance(factor, float) and factor == 1.0):
        return number
    # In float64, like the multiplication of Python floats.
    return number * (factor.double() if isinstance(factor, Tensor) else factor)


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is the Python number zero, so that its term can be skipped."""
    return isinstance(value, (int, float)) and value == 0


def counter(params: Tensors) -> Tensor:
    """A new update counter at zero: float32[], the dtype that the fused kernels require."""
    return torch.zeros((), dtype=torch.float32, device=params.device)


def correction(beta: Number, count: Tensor) -> Tensor:
    """The bias correction ``1 - beta**count`` of a moving average started at zero: float64[]."""
    # float32 would lose four digits in the first steps.
    return 1 - beta ** count.double()


def descent(
    grads: Tensors, params: Tensors, weight_decay: Number = 0.0, maximize: bool = False
) -> Tensors:
    """The gradients to descend along: negated if `maximize`, plus ``weight_decay * parameter``."""
    g = grads.wide()
    if maximize:
        g = g.scale(-1.0)
    return g if is_zero(weight_decay) else g.add(params.wide().scale(weight_decay))


def decayed(updates: Tensors, params: Tensors, lr: Number, weight_decay: Number) -> Tensors:
    """Add decoupled weight decay to updates: ``-lr * weight_decay * parameter``."""
    if is_zero(weight_decay):
        return updates
    return updates.add(params.wide().scale(-lr * weight_decay))


def narrowed(memory: Any, gone: Set[str]) -> Any:
    """Remove the tensors of the parameters `gone` from an optimizer's memory."""
    if isinstance(memory, Tensors):
        kept = [name for name in memory.names if name not in gone]
        return memory if len(kept) == len(memory) else memory.select(kept)
    if isinstance(memory, dict):
        return {key: narrowed(value, gone) for key, value in memory.items()}
    return memory


def widened(memory: Any, old: Any) -> Any:
    """The inverse of `narrowed`: take the removed tensors from `old`."""
    if isinstance(memory, Tensors) and isinstance(old, Tensors):
        return old.updated(memory)
    if isinstance(memory, dict) and isinstance(old, dict):
        return {k: widened(v, old[k]) if k in old else v for k, v in memory.items()}
    return memory


def check_named(params: Any) -> None:
    """Check that parameters are `fl.Tensors`.

    Raises:
        TypeError: They are something else, such as a dict.
    """
    if not isinstance(params, Tensors):
        raise TypeError(
            f"An optimizer takes parameters as fl.Tensors, such as state.params, and was given "
            f"{type(params).__name__}. Convert it: fl.Tensors({{'w': ...}})."
        )


def check_one_gradient(owner: str, optimizers: Iterable[Any]) -> None:
    """Check that no optimizer in a combination of them evaluates the loss at other parameters.

    Raises:
        TypeError: One does.
    """
    for optimizer in optimizers:
        if getattr(optimizer, "evaluates", False):
            name = type(optimizer).__name__
            raise TypeError(
                f"{name} evaluates the loss at other parameters too, and so stands alone in "
                f"fl.update({name}(...)): {owner} would change the first of its gradients only. "
                "What is to be done with every gradient is a stage between fl.grad and fl.update; "
                "which parameters are trained is said by fl.grad(only=...)."
            )


def refuse_complex(owner: str, params: Tensors) -> None:
    """Check that no parameter is complex, for optimizers not defined for complex numbers.

    Raises:
        TypeError: One is.
    """
    found = [f"{name} {short(p)}" for name, p in params.outlines() if p.is_complex()]
    if found:
        raise TypeError(
            f"{owner} is not defined for complex parameters ({', '.join(found[:4])}). Use another "
            "optimizer for them: fl.optim.by_label(...), or fl.optim.adam() for all."
        )

"""The optimizers and schedulers that a module is given when it steps them itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, Never

import torch
from torch import Tensor, nn

from fnloop.optim.base import Memory, Optimizer, narrowed, widened
from fnloop.optim.pieces import applied
from fnloop.trees.show import short
from fnloop.values.tensors import Tensors


class ReadGroup(dict[str, Any]):
    """A parameter group: its parameters, and numbers that can be read."""

    def _refuse(self, *_: Any, **__: Any) -> Never:
        raise RuntimeError(
            "The module writes to param_groups of an optimizer. Its numbers follow from the state "
            "here, so a change would be lost. A learning rate that changes is a scheduler in "
            "configure_optimizers: LambdaLR takes any function of the step."
        )

    __setitem__ = __delitem__ = update = setdefault = pop = clear = _refuse  # type: ignore


class HandOptimizer:
    """Steps as a ``torch.optim.Optimizer`` does, by an optimizer that is a pure function.

    Args:
        rule: Gives the optimizer, with numbers for its hyperparameters.
        groups: The parameters of each parameter group by name, under what the group's
            hyperparameters begin with.
        memory: What the optimizer remembers.
        steps: int64[]; the steps that it has taken.
        module: The ``LightningModule``, which says whose gradients are wanted.

    Attributes:
        memory, steps: The same after the call.
        finite: Whether all gradients were.
    """

    def __init__(
        self,
        rule: Callable[[], Optimizer],
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        memory: Memory,
        steps: Tensor,
        module: Any,
    ) -> None:
        self.memory, self.steps, self.finite = memory, steps, True
        self._module = module
        self._rule, self._groups = rule, groups
        self._params = {name: p for own in groups.values() for name, p in own.items()}

    @property
    def param_groups(self) -> list[ReadGroup]:
        """The parameter groups as they are now; they can be read."""
        values = self._rule().hyperparameters()
        return [
            ReadGroup(
                {
                    "params": list(params.values()),
                    **{n.rpartition(".")[2]: v for n, v in values.items() if n.startswith(prefix)},
                }
            )
            for prefix, params in self._groups.items()
        ]

    @property
    def optimizer(self) -> HandOptimizer:
        """Itself, as Lightning's wrappers have the optimizer that they wrap."""
        return self

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        """Update the parameters by their gradients; those without one are left alone."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        found = {name: p.grad for name, p in self._params.items() if p.grad is not None}
        if not found:
            return result
        grads = Tensors({name: g.detach() for name, g in found.items()})
        self.finite = self.finite and bool(grads.is_finite())
        params = Tensors({name: self._params[name].detach().clone() for name in found})
        rest = set(self._params).difference(found)
        memory = narrowed(self.memory, rest) if rest else self.memory
        step = int(self.steps)
        new, made = applied(self._rule(), grads.wide(), memory, params, step, True)
        self.memory = widened(made, self.memory) if rest else made
        self.steps = self.steps + 1
        with torch.no_grad():
            for name, value in new.items():
                self._params[name].copy_(value)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for p in self._params.values():
            p.grad = None if set_to_none or p.grad is None else torch.zeros_like(p.grad)

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Generator[None]:
        """A context manager inside which only its own parameters get gradients."""
        self._module.toggle_optimizer(self)
        try:
            yield
        finally:
            self._module.untoggle_optimizer(self)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            f"The module asks for optimizer.{name}, and an optimizer has step, zero_grad and "
            "param_groups here: what it remembers is in the state."
        )

    def __repr__(self) -> str:
        return short(self._rule())


class HandScheduler:
    """Counts its steps; the learning rate is a function of the count.

    Args:
        count: int64[]; the steps so far.
        rates: The learning rates at a count.
    """

    def __init__(self, count: Tensor, rates: Callable[[int], list[float]]) -> None:
        self.count, self._rates = count, rates

    @property
    def last_epoch(self) -> int:
        """The steps so far."""
        return int(self.count)

    def step(self, metrics: Any = None) -> None:
        """Count one; the optimizer has the new rate from then on."""
        if metrics is not None:
            raise RuntimeError(
                "A scheduler is stepped by hand with a metric. Let fl.reduce_on_plateau(monitor) "
                "among the callbacks lower the rates, or use one that counts."
            )
        self.count = self.count + 1

    def get_last_lr(self) -> list[float]:
        """The learning rates now."""
        return self._rates(int(self.count))


def prefix_of(i: int, count: int) -> str:
    """What begins the names of hyperparameters of optimizer `i`."""
    return f"optimizer{i}." if count > 1 else ""


def clip_gradients(optimizer: Any, value: float | None, how: str | None) -> None:
    """Clip the gradients of an optimizer's parameters in place, as Lightning does.

    Args:
        optimizer: With parameter groups.
        value: The largest norm of all, or the largest value; None or 0 for no clipping.
        how: As for `clip_algorithm`.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    algorithm = clip_algorithm(how, "self.clip_gradients")
    if not value or value <= 0:
        return
    if algorithm == "value":
        nn.utils.clip_grad_value_(params, value)
    else:
        nn.utils.clip_grad_norm_(params, value)


def clip_algorithm(given: str | None, who: str) -> str:
    """``"norm"`` or ``"value"``, as Lightning reads it: in any case, and None for the norm.

    Args:
        given: What the user gave.
        who: The function that was given it, for messages.

    Raises:
        ValueError: It is neither.

    >>> clip_algorithm("Value", "step"), clip_algorithm(None, "step")
    ('value', 'norm')
    """
    found = "norm" if given is None else str(given).lower()
    if found not in ("norm", "value"):
        raise ValueError(
            f'{who}(gradient_clip_algorithm=...) takes "norm" or "value", got {given!r}. Usual: '
            '"norm", which clips the norm of all gradients; "value" clips each of their values.'
        )
    return found

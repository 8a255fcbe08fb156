"""``new_grad``: say in a line what it does, and where it is from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

import fnloop as fl


@fl.tree
class NewGrad(fl.base.GradStage):
    """The stage that `new_grad` makes; its fields are its settings, which print and sweep."""

    wraps: ClassVar[Any] = "grad"
    label: ClassVar[str] = "new_grad"
    inner: Any
    factor: Any = 2.0
    decay: Any = 0.99
    name: str = "new_grad"

    def init_state(self, state: fl.State) -> dict[str, Tensor]:
        """Its memory, which is ``state[self.name]`` from then on; without a `name` it has none."""
        zero = torch.zeros_like(state.params.norm())
        return {"sum": zero, "weight": zero.clone()}

    def __call__(self, state: fl.State, x: Any) -> tuple[fl.State, fl.Grads]:
        factor, decay = self.at(state, "factor", "decay")  # numbers, tensors or schedules
        after, grads = self.inner(state, x)
        norm = grads.mean.norm()
        old = after[self.name]
        new = {
            "sum": decay * old["sum"] + (1 - decay) * norm,
            "weight": decay * old["weight"] + (1 - decay),
        }
        limit = factor * new["sum"] / new["weight"]
        mean = grads.mean.scale((limit / (norm + 1e-12)).clamp(max=1))
        # A batch that is skipped leaves no trace.
        good = grads.finite & norm.isfinite() & (grads.weight > 0)
        memory = {key: torch.where(good, new[key], old[key]) for key in old}
        metrics = {**grads.metrics, "new_grad.limit": fl.Last(limit)}
        return after.put(self.name, memory), grads.replace(mean=mean, metrics=metrics)


def new_grad(
    factor: Any = 2.0, decay: Any = 0.99, name: str = "new_grad"
) -> Callable[[fl.base.GradStage], NewGrad]:
    """Clip the gradient to `factor` times the running mean of its norm.

    Goes between ``fl.grad`` and ``fl.update``. The limit is reported as ``new_grad.limit``.

    Args:
        factor: How far above the mean a norm may be: a number, tensor or schedule.
        decay: Of the running mean, from 0 to 1.
        name: Name of its memory in the state.
    """
    return functools.partial(NewGrad, factor=factor, decay=decay, name=name)

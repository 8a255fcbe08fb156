"""Schedules for the decay of an average."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fnloop.schedules.base import Schedule, check_count, where
from fnloop.trees.nodes import tree


@tree
class uniform(Schedule):
    """The decay that makes `fl.ema` a plain mean of weights along the way (Izmailov et al., 2018).

    ``fl.ema(fl.schedules.uniform(start=800, every=100))`` is the mean of the weights after 800,
    900, 1000, ... steps, the last ones included. Before that it is the weights themselves.

    Args:
        start: The first weights that count are those after so many steps.
        every: Steps from one to the next that count.

    Raises:
        TypeError: A step count is not an int.
        ValueError: One is below 1.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> average = fl.ema(uniform(start=2, every=2))
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), average)
    >>> state, weights = step.init(torch.nn.Linear(1, 1)), []
    >>> for _ in range(6):
    ...     state, _ = step(state, torch.ones(1, 1))
    ...     weights.append(state.params["weight"])
    >>> mean = (weights[1] + weights[3] + weights[5]) / 3  # after 2, 4 and 6 steps
    >>> torch.allclose(state["ema"]["weight"], mean)
    True
    """

    start: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        check_count(self, "start", least=1)
        check_count(self, "every", least=1)

    def compute(self, step: Any) -> Any:
        since = step + 1 - self.start  # the average is taken after the step
        before = (since / self.every).floor() if isinstance(since, Tensor) else since // self.every
        counts = since == before * self.every
        return where(since < 0, 0.0, where(counts, before / (abs(before) + 1), 1.0))

"""``sgld``: stochastic gradient Langevin dynamics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import NonNegative
from fnloop.stages.base import Kind, StepStage
from fnloop.trees.nodes import tree
from fnloop.values.choice import stepped
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State


@tree
class Sgld(StepStage):
    """The stage that `sgld` makes."""

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "sgld"
    inner: Any
    temperature: Any
    lr: str = "sgd.lr"

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        (temperature,) = self.at(state, "temperature")
        after, metrics = self.inner(state, x)
        rate = rate_in(metrics, self.lr, "sgld")
        moved = stepped(state, after)
        if moved is False:
            return after, metrics
        std = (2 * rate * temperature) ** 0.5
        old = after.params.select(self.trained_now(state))
        with randomness(state, "sgld"):
            new = old.wide().map_named(lambda p: p + std * normal_like(p))
        params = new.cast(old).where(moved, old)
        return after.replace(params=after.params.updated(params)), metrics


@explained
def sgld(temperature: NonNegative, lr: str = "sgd.lr") -> Callable[[StepStage], Sgld]:
    """Stochastic gradient Langevin dynamics: noise after each step, so that a run draws samples.

    Welling & Teh, 2011 (https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf),
    equation 4: ``w = w - lr * grad + sqrt(2 * lr * temperature) * normal``. For a small learning
    rate the parameters are then samples of the density proportional to ``exp(-loss /
    temperature)``. Where the loss is the mean negative log likelihood of one of N examples, plus
    the negative log prior divided by N, ``temperature=1 / N`` samples the posterior. (Their step
    size is ``2 * lr / N``.)

    Goes around ``fl.update(fl.optim.sgd(lr))``, without momentum, whose current learning rate it
    takes from the metrics, so that schedules and `fl.scale` count for both. All trained parameters
    get noise, also those that the loss does not reach; those that are frozen, by `fl.grad` or by
    the optimizer (`fl.optim.freeze`), get none. A skipped step adds none.

    Args:
        temperature: A number, tensor or schedule.
        lr: The metric with the learning rate.

    Raises:
        ValueError: `temperature` is negative; or, at the call, the step reports no such metric.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model.weight.square().sum() / 2  # a normal distribution
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), sgld(temperature=4.0))
    >>> state = step.init(torch.nn.Linear(100, 100, bias=False))
    >>> for _ in range(50):
    ...     state, _ = step(state, torch.ones(1))
    >>> print(f"{state.params['weight'].std():.1f}")
    2.1
    """
    return functools.partial(Sgld, temperature=temperature, lr=lr)


def rate_in(metrics: Mapping[str, Any], name: str, who: str) -> Any:
    """The learning rate that a step reports.

    Raises:
        ValueError: It reports none of that name.
    """
    if name not in metrics:
        raise ValueError(
            f'{who} takes the learning rate from the metric "{name}", which the step does not '
            f"report; it reports: {', '.join(metrics)}. It goes directly around fl.update("
            f'fl.optim.sgd(lr)); for an optimizer of another name: {who}(..., lr="name.lr").'
        )
    return metrics[name].value()

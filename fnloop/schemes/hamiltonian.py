"""``sghmc``: stochastic gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import NonNegative, Share
from fnloop.schemes.langevin import rate_in
from fnloop.stages.base import Kind, StepStage
from fnloop.trees.nodes import tree
from fnloop.values.choice import stepped
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class Sghmc(StepStage):
    """The stage that `sghmc` makes."""

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "sghmc"
    inner: Any
    temperature: Any
    friction: Any = 0.1
    lr: str = "sgd.lr"
    name: str = "sghmc"

    def init_state(self, state: State) -> Tensors:
        return state.params.select(self.trained(state)).zeros()

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        temperature, friction = self.at(state, "temperature", "friction")
        after, metrics = self.inner(state, x)
        rate = rate_in(metrics, self.lr, "sghmc")
        moved = stepped(state, after)
        if moved is False:
            return after, metrics
        std = (2 * friction * rate * temperature) ** 0.5
        velocity = after[self.name].select(self.trained_now(state))
        old, stepped_to = (each.params.select(velocity).wide() for each in (state, after))
        new = stepped_to.sub(old).add(velocity.scale(1 - friction))
        with randomness(state, "sghmc"):
            new = new.map_named(lambda v: v + std * normal_like(v))
        there = after.params.select(velocity)
        params = old.add(new).cast(there).where(moved, there)
        after = after.replace(params=after.params.updated(params))
        velocity = new.where(moved, velocity)
        return after.put(self.name, after[self.name].updated(velocity)), metrics


@explained
def sghmc(
    temperature: NonNegative, friction: Share = 0.1, lr: str = "sgd.lr", name: str = "sghmc"
) -> Callable[[StepStage], Sghmc]:
    """Stochastic gradient Hamiltonian Monte Carlo: SGD with momentum that draws samples.

    Chen, Fox & Guestrin, 2014 (https://arxiv.org/abs/1402.4102), equation 15, with their estimate
    of the gradient's own noise taken as zero: ``v = (1 - friction) * v - lr * grad + sqrt(2 *
    friction * lr * temperature) * normal``, then ``w = w + v``. For a small learning rate the
    parameters are samples of the density proportional to ``exp(-loss / temperature)``, as those of
    `fl.schemes.sgld` are; momentum makes them forget where they were sooner. Where the loss is the
    mean negative log likelihood of one of N examples, plus the negative log prior divided by N,
    ``temperature=1 / N`` samples the posterior. (Their learning rate is ``lr / N``.)

    Goes around ``fl.update(fl.optim.sgd(lr))``, without momentum, which is this stage's: it is
    ``state["sghmc"]``. The current learning rate is taken from the metrics, so that schedules and
    `fl.scale` count for both. At a temperature of zero it is SGD with a momentum of ``1 -
    friction``. All trained parameters get noise, also those that the loss does not reach; those
    that are frozen, by `fl.grad` or by the optimizer (`fl.optim.freeze`), get none. A skipped step
    changes nothing.

    Args:
        temperature: A number, tensor or schedule.
        friction: From 0 to 1: a number, tensor or schedule.
        lr: The metric with the learning rate.
        name: Name of the slot.

    Raises:
        ValueError: `friction` is not from 0 to 1; or, at the call, the step does not report `lr`.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model.weight.square().sum() / 2  # a normal distribution
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.01)), sghmc(temperature=4.0))
    >>> state = step.init(torch.nn.Linear(100, 100, bias=False))
    >>> for _ in range(100):
    ...     state, _ = step(state, torch.ones(1))
    >>> print(f"{state.params['weight'].std():.1f}")
    2.0
    """
    return functools.partial(Sghmc, temperature=temperature, friction=friction, lr=lr, name=name)

"""``noise``: normal noise that is added to gradients, less of it at each step."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fnloop.optim.base import Memory, Step, Transform, is_zero
from fnloop.schedules.ranges import Hyper, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.randomness import normal_like
from fnloop.values.tensors import Tensors


@tree
class noise(Transform):
    """Add normal noise to the gradients, whose variance falls as ``eta / (1 + step)**gamma``.

    Neelakantan et al., 2015 (https://arxiv.org/abs/1511.06807), where `eta` is one of 0.01, 0.3 and
    1; ``optax.add_noise`` is the same. Each value of each gradient gets a number of its own. Noise
    that stands before a clipping is clipped too; behind it, it is not.

    In a step the numbers are a function of the state: of its key, its calls and the name of the
    `fl.update`. Called by itself, outside of a step, it draws from torch's generator. Parameters
    that the loss does not reach get none, and a gradient that is divided among ranks is gathered to
    draw for it what one process draws.

    Args:
        eta: The variance in the first step: a number, tensor or schedule. Zero adds nothing.
        gamma: How fast it falls; at 0, not at all.
        name: Prefix of its hyperparameters.

    Raises:
        ValueError: `eta` is negative.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: 0 * model(batch).sum()  # the gradient is zero
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.chain(noise(0.25), fl.optim.sgd(1.0))))
    >>> state = step.init(torch.nn.Linear(100, 100, bias=False))
    >>> new, _ = step(state, torch.ones(1, 100))
    >>> print(f"{new.params.sub(state.params)['weight'].std():.1f}")
    0.5
    """

    draws: ClassVar[bool] = True

    eta: NonNegative = 0.01
    gamma: Hyper = 0.55
    name: str = "noise"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        eta, gamma = self.at(step, "eta", "gamma")
        if is_zero(eta):
            return grads, memory
        t = step.double() if isinstance(step, Tensor) else step  # as Python has it
        std = (eta / (1 + t) ** gamma) ** 0.5
        return grads.wide().map_named(lambda g: g + std * normal_like(g)), memory

"""``sam``: sharpness-aware minimization, and its adaptive form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import NonNegative
from fnloop.schemes.displaced import gradient_elsewhere
from fnloop.stages.base import GradStage, Kind
from fnloop.trees.nodes import tree
from fnloop.values.grads import Grads
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class Sam(GradStage):
    """The stage that `sam` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "sam"
    repeats: ClassVar[bool] = True
    inner: Any
    rho: Any = 0.05
    adaptive: bool = False
    eta: Any = 0.01

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        return gradient_elsewhere(self.inner, state, x, functools.partial(self.uphill, state))

    def uphill(self, state: State, params: Tensors, g: Tensors) -> Tensors:
        """Where the second gradient is taken: uphill of `params`, where the gradient is `g`."""
        rho, eta = self.at(state, "rho", "eta")
        if not self.adaptive:
            return params.add(g.scale(rho / (g.norm() + _TINY)))
        size = params.wide().abs().add(eta)
        scaled = g.mul(size)
        return params.add(scaled.mul(size).scale(rho / (scaled.norm() + _TINY)))


_TINY = 1e-12


@explained
def sam(
    rho: NonNegative = 0.05, adaptive: bool = False, eta: NonNegative = 0.01
) -> Callable[[GradStage], Sam]:
    """Sharpness-aware minimization (SAM): the gradient at the worst point nearby.

    Foret et al., 2021 (https://arxiv.org/abs/2010.01412), equation 2 and algorithm 1: the gradient
    at ``w + rho * g / ||g||``, where ``g`` is the gradient at the parameters ``w``. With
    `adaptive`, ASAM (Kwon et al., 2021, https://arxiv.org/abs/2102.11600, section 4): at
    ``w + rho * t**2 * g / ||t * g||``, with ``t = |w| + eta`` elementwise, so that (but for `eta`)
    rescaling the layers of a network changes nothing.

    Goes between `fl.grad` and `fl.update`, and evaluates the loss twice, at the same dropout masks.
    The loss and metrics reported, and BatchNorm's statistics, are those at the parameters. Inside
    of `fl.accumulate` each micro-batch has an uphill point of its own ("m-sharpness"); outside, the
    whole batch has one; on ranks, it is one for all ranks.

    Args:
        rho: Radius: a number, tensor or schedule. Foret et al. take 0.05; ASAM takes about ten
            times that.
        adaptive: Whether to measure distance relative to the size of each parameter.
        eta: What is added to the sizes; for `adaptive` alone.

    Raises:
        ValueError: `rho` or `eta` is negative.

    >>> import torch, fnloop as fl
    >>> gradients = fl.pipe(lambda model, batch: model.weight.square().sum() / 2, fl.grad, sam(0.5))
    >>> state = gradients.init(torch.nn.Linear(2, 1, bias=False))
    >>> state = state.replace(params={"weight": torch.tensor([[3.0, 4.0]])})
    >>> gradients(state, torch.ones(1))[1].mean["weight"]  # 0.5 further out than the parameters
    tensor([[3.3000, 4.4000]])
    """
    return functools.partial(Sam, rho=rho, adaptive=adaptive, eta=eta)

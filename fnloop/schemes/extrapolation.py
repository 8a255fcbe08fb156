"""``extragradient``: the gradient a step ahead, for games."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import Positive
from fnloop.schemes.displaced import gradient_elsewhere
from fnloop.stages.base import GradStage, Kind
from fnloop.trees.nodes import tree
from fnloop.values.grads import Grads
from fnloop.values.state import State


@tree
class Extragradient(GradStage):
    """The stage that `extragradient` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "extragradient"
    repeats: ClassVar[bool] = True
    inner: Any
    lr: Any

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        (lr,) = self.at(state, "lr")
        return gradient_elsewhere(self.inner, state, x, lambda params, g: params.sub(g.scale(lr)))


@explained
def extragradient(lr: Positive) -> Callable[[GradStage], Extragradient]:
    """Extragradient: the gradient that one would find after a step along the gradient.

    Korpelevich, 1976; for games between networks Gidel et al., 2019
    (https://arxiv.org/abs/1802.10551, section 3.2): ``w = w - lr * F(w - lr * F(w))``, where ``F``
    are the gradients of all players, each of its own loss. Where players turn around their
    equilibrium or spiral away from it, as in ``min max x * y``, this goes towards it.

    Goes between the gradients and ``fl.update(fl.optim.sgd(lr))``. `fl.schemes.several` makes the
    gradients of several players on one batch. Evaluates twice, at the same dropout masks; metrics
    and BatchNorm's statistics are those at the parameters.

    Args:
        lr: Size of the step ahead, usually the optimizer's: a number, tensor or schedule.

    >>> import torch, fnloop as fl
    >>> class Pair(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.x, self.y = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
    >>> step = fl.pipe(
    ...     fl.schemes.several(
    ...         x=fl.grad(lambda model, batch: model.x * model.y, only="x"),
    ...         y=fl.grad(lambda model, batch: -model.x * model.y, only="y"),
    ...     ),
    ...     extragradient(0.5),
    ...     fl.update(fl.optim.sgd(0.5)),
    ... )
    >>> state = step.init(Pair)
    >>> for _ in range(30):
    ...     state, _ = step(state, torch.ones(1))
    >>> print(f"{state.params.norm():.2f}")  # after 30 steps of sgd it is 40.19
    0.06
    """
    return functools.partial(Extragradient, lr=lr)

"""Adam and AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

from fnloop._torch import fused
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    correction,
    counter,
    decayed,
    descent,
)
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.choice import Flag, select
from fnloop.values.fused_update import FusedUpdate
from fnloop.values.looking import counted, look
from fnloop.values.tensors import Tensors

_VALUES = ("lr", "b1", "b2", "eps", "weight_decay")


class _Adam(Optimizer):
    by_value = True
    decoupled: ClassVar[bool]

    lr: NonNegative
    b1: Decay
    b2: Decay
    eps: NonNegative
    weight_decay: NonNegative
    amsgrad: bool
    maximize: bool

    def init_state(self, params: Tensors) -> dict[str, Any]:
        return {**{part: params.zeros() for part in self._parts}, "count": counter(params)}

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("mu", "nu", "nu_max") if self.amsgrad else ("mu", "nu")

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = self.at(step, *_VALUES)
        g = descent(grads, params, 0.0 if self.decoupled else decay, self.maximize)
        count = own["count"] + 1
        mu, nu = own["mu"].lerp(g, 1 - b1), own["nu"].lerp(g.mul(g), 1 - b2)
        new = {**own, "mu": mu, "nu": nu, "count": count}
        if self.amsgrad:
            nu = new["nu_max"] = own["nu_max"].maximum(nu)
        # With the correction factored out of the root, each value needs one division, not two.
        root = correction(b2, count) ** 0.5
        updates = mu.scale(-lr * root / correction(b1, count)).div(nu.sqrt().add(eps * root))
        if self.decoupled:
            updates = decayed(updates, params, lr, decay)
        return updates, {**memory, self.name: new}

    def fused(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> FusedUpdate | None:
        own = memory[self.name]
        count = counted(own["count"], look(own["count"]))
        lr, b1, b2, eps, decay = self.at(step, *_VALUES)

        def remember(*parts: Tensors) -> Memory:
            new = dict(zip(self._parts, parts, strict=True))
            new_count = select(finite, count, own["count"])
            return {**memory, self.name: {**own, **new, "count": new_count}}

        return params.fused(
            fused.adam, grads, list(map(own.__getitem__, self._parts)), count, finite,
            remember=remember, decoupled=self.decoupled, lr=lr, betas=(b1, b2), eps=eps,
            weight_decay=decay, maximize=self.maximize,
        )  # fmt: skip


@tree
class adam(_Adam):
    """Adam (Kingma & Ba, 2015, algorithm 1); ``torch.optim.Adam``.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient.
        eps: Added to the denominator.
        weight_decay: L2 penalty, added to the gradient (decoupled in `adamw`).
        amsgrad: Use the largest second moment so far (Reddi et al., 2018).
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = adam(1e-3)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.0010, -0.0010])
    """

    decoupled: ClassVar[bool] = False

    lr: NonNegative = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    amsgrad: bool = False
    maximize: bool = False
    name: str = "adam"


@tree
class adamw(_Adam):
    """AdamW (Loshchilov & Hutter, 2019, algorithm 2); ``torch.optim.AdamW``.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient.
        eps: Added to the denominator.
        weight_decay: Decoupled; each step subtracts ``lr * weight_decay * parameter``.
        amsgrad: Use the largest second moment so far (Reddi et al., 2018).
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> optimizer = adamw(3e-4, weight_decay=0.1)
    >>> optimizer.hyperparameters()
    {'adamw.lr': 0.0003, 'adamw.weight_decay': 0.1}
    """

    decoupled: ClassVar[bool] = True

    lr: NonNegative = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.01
    amsgrad: bool = False
    maximize: bool = False
    name: str = "adamw"

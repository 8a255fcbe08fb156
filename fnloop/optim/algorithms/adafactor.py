"""Adafactor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fnloop.optim.base import Memory, Optimizer, Step, counter, decayed, descent, refuse_complex
from fnloop.schedules.ranges import Hyper, NonNegative, Positive
from fnloop.trees.nodes import static, tree
from fnloop.values.tensors import Tensors


@tree
class adafactor(Optimizer):
    """Adafactor (Shazeer & Stern, 2018, algorithm 5); ``torch.optim.Adafactor``.

    Second moments are factored. As in torch, `lr` is the largest relative step size, and `eps1` is
    a lower bound of the second moment instead of being added to the squared gradient.

    Args:
        lr: Largest relative step size; also multiplies the weight decay.
        beta2_decay: The second moment's decay rate at update t is ``1 - t ** beta2_decay``.
        eps1: Lower bound of the second moment's square root; None is the machine epsilon of the
            parameter's dtype.
        eps2: Lower bound of a parameter's root mean square, which scales its step.
        clip_threshold: Upper bound of the root mean square of the update direction.
        weight_decay: Decoupled; each step subtracts ``lr * weight_decay * parameter``.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    Raises:
        TypeError: At `init`, a parameter is complex.

    >>> optimizer = adafactor()
    >>> memory = optimizer.init(Tensors({"w": torch.ones(3, 4), "b": torch.ones(3)}))["adafactor"]
    >>> memory["row"]["w"].shape, memory["column"]["w"].shape, memory["nu"]["b"].shape
    (torch.Size([3, 1]), torch.Size([1, 4]), torch.Size([3]))
    """

    lr: NonNegative = 1e-2
    beta2_decay: Hyper = -0.8
    eps1: NonNegative | None = static(default=None)
    eps2: NonNegative = 1e-3
    clip_threshold: Positive = 1.0
    weight_decay: NonNegative = 0.0
    maximize: bool = False
    name: str = "adafactor"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        refuse_complex("adafactor", params)
        wide = params.zeros()
        matrices = [name for name, p in wide.items() if p.ndim > 1]
        return {
            "row": Tensors({name: wide[name][..., :1].clone() for name in matrices}),
            "column": Tensors({name: wide[name][..., :1, :].clone() for name in matrices}),
            "nu": wide.select([name for name in wide if name not in matrices]).clone(),
            "count": counter(params),
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, power, eps2, threshold, decay = self.at(
            step, "lr", "beta2_decay", "eps2", "clip_threshold", "weight_decay"
        )
        count = own["count"] + 1
        weight = count.double() ** power
        relative = (count.double() ** -0.5).clamp(max=lr)
        parts: dict[str, dict[str, Tensor]] = {"row": {}, "column": {}, "nu": {}}
        updates: dict[str, Tensor] = {}
        g, wide = descent(grads, params, maximize=self.maximize), params.wide()
        for name, grad in g.items():
            p, eps1 = wide[name], self.eps1
            eps1 = torch.finfo(params[name].dtype).eps if eps1 is None else eps1
            square = grad * grad
            if p.ndim > 1:
                row = _mix(own["row"][name], square.mean(-1, keepdim=True), weight)
                column = _mix(own["column"][name], square.mean(-2, keepdim=True), weight)
                parts["row"][name], parts["column"][name] = row, column
                second = row @ column / row.mean(-2, keepdim=True).clamp(min=eps1)
            else:
                second = parts["nu"][name] = _mix(own["nu"][name], square, weight)
            direction = grad * second.clamp(min=eps1**2).rsqrt()
            size = _rms(p).clamp(min=eps2) * relative.to(p.dtype)
            updates[name] = -size / (_rms(direction) / threshold).clamp(min=1.0) * direction
        new = {**own, **{k: own[k].like(part) for k, part in parts.items()}, "count": count}
        return decayed(g.like(updates), params, lr, decay), {**memory, self.name: new}


def _mix(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(old, new, weight.to(old.dtype))


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / x.numel() ** 0.5

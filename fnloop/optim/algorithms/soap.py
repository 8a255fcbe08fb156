"""SOAP."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from fnloop.names.arguments import bounded
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    correction,
    counter,
    decayed,
    refuse_complex,
)
from fnloop.optim.eigenbases import eigenbasis, improved, product, reordered, turned
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import static, tree
from fnloop.values.choice import Flag, choose
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.tensors import Tensors
from fnloop.values.underivable import undifferentiated


@tree
class soap(Optimizer):
    """SOAP (Vyas et al., 2024, algorithm 3): Adam in the eigenbasis of Shampoo's preconditioner.

    https://arxiv.org/abs/2409.11321. As in the authors' implementation, the first step moves no
    parameter: it finds the first bases. Each side of a matrix, and each axis of a larger tensor,
    has a mean of its gradients' products and a basis, two square matrices of its length. Vectors,
    and sides above `max_size`, have none; where there is none, it is Adam.

    Bases are found anew in every `every`-th step, by one power iteration and a QR decomposition.
    Where numbers cannot be looked at (compiled, vmapped, on an accelerator) that, and an
    eigendecomposition, are computed in each step, and dropped in most: it is slow there.

    It cannot be differentiated: an eigenbasis has no derivative where eigenvalues are equal, and
    products of few gradients have many that are zero.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient, in the basis.
        b_shampoo: Decay rate of the mean of gradients' products; None for `b2`.
        eps: Added to the denominator.
        weight_decay: Decoupled; each step subtracts ``lr * weight_decay * parameter``.
        every: Steps from one change of the bases to the next.
        max_size: The longest side that has a basis.
        name: Key of its memory and prefix of its hyperparameters.

    Raises:
        TypeError: `every` or `max_size` is not a whole number; at `init`, a parameter is complex.
        ValueError: `every` or `max_size` is below 1.

    >>> optimizer = soap()
    >>> memory = optimizer.init(Tensors({"w": torch.ones(3, 4), "b": torch.ones(3)}))["soap"]
    >>> memory["basis"]["0"]["w"].shape, memory["basis"]["1"]["w"].shape
    (torch.Size([3, 3]), torch.Size([4, 4]))
    """

    lr: NonNegative = 3e-3
    b1: Decay = 0.95
    b2: Decay = 0.95
    b_shampoo: Annotated[float, bounded(0, 1)] | None = static(default=None)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.01
    every: int = 10
    max_size: int = 10_000
    name: str = "soap"

    def __post_init__(self) -> None:
        for field in ("every", "max_size"):
            count = as_count(getattr(self, field), f"soap({field}=...)", 1)
            object.__setattr__(self, field, count)

    def init_state(self, params: Tensors) -> dict[str, Any]:
        refuse_complex("soap", params)
        wide = params.zeros()
        squares: dict[str, dict[str, Tensor]] = {}
        for name, p in wide.items():
            for axis in self._axes(p):
                n = p.shape[axis]
                squares.setdefault(str(axis), {})[name] = p.new_zeros(n, n)
        return {
            "mu": wide,
            "nu": params.zeros(),
            **{
                part: {axis: Tensors(named).clone() for axis, named in sorted(squares.items())}
                for part in ("product", "basis")
            },
            "count": counter(params),
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own, g = memory[self.name], grads.wide()
        lr, decay = self.at(step, "lr", "weight_decay")
        first = look(own["count"] == 0)
        found = {name: self._one(name, grad, own, first, step, lr) for name, grad in g.items()}

        def collected(part: str, old: Tensors) -> Tensors:
            return old.like({name: found[name][part] for name in old})

        def squares(part: str) -> dict[str, Tensors]:
            return {axis: collected(part + axis, old) for axis, old in own[part].items()}

        moves = collected("move", g)
        updates = choose(
            first, lambda: moves, lambda: decayed(moves, params.wide().add(moves), lr, decay)
        )
        new = {part: collected(part, own[part]) for part in ("mu", "nu")}
        new = {**new, **{part: squares(part) for part in ("product", "basis")}}
        return updates, {**memory, self.name: {**new, "count": own["count"] + 1}}

    def _one(
        self, name: str, grad: Tensor, own: dict[str, Any], first: Flag, step: Step, lr: Any
    ) -> dict[str, Tensor]:
        """The move of one parameter, and its memory; products and bases with the axis behind."""
        b1, b2, eps = self.at(step, "b1", "b2", "eps")
        b = b2 if self.b_shampoo is None else self.b_shampoo
        mu, nu, axes = own["mu"][name], own["nu"][name], self._axes(grad)
        bases = {axis: own["basis"][str(axis)][name] for axis in axes}
        products: dict[int, Tensor] = {}
        for axis in axes:
            old, new = own["product"][str(axis)][name], product(grad, axis)
            products[axis] = old.lerp(new, _like(1 - b, old))
        known = {axis: undifferentiated(each, _NOT) for axis, each in products.items()}

        def begun() -> dict[str, Tensor]:
            found = {f"basis{axis}": eigenbasis(each) for axis, each in known.items()}
            return {"move": torch.zeros_like(grad), "mu": mu, "nu": nu, **found}

        def moved() -> dict[str, Tensor]:
            count = own["count"].clamp(min=1)  # the first step does not count
            size = -lr * correction(b2, count) ** 0.5 / correction(b1, count)
            new_mu = mu.lerp(grad, _like(1 - b1, mu))
            new_nu = nu.lerp(turned(grad, bases).square(), _like(1 - b2, nu))
            direction = turned(turned(new_mu, bases) / (new_nu.sqrt() + eps), bases, back=True)
            due = look(own["count"] % self.every == 0)
            turn = choose(due, lambda: rebased(new_nu), lambda: kept(new_nu))
            return {"move": _like(size, grad) * direction, "mu": new_mu, **turn}

        def rebased(nu: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for axis, each in known.items():
                found[f"basis{axis}"], order = improved(each, bases[axis])
                nu = reordered(nu, order, axis)
            return {"nu": nu, **found}

        def kept(nu: Tensor) -> dict[str, Tensor]:
            return {"nu": nu, **{f"basis{axis}": basis for axis, basis in bases.items()}}

        made = choose(first, begun, moved)
        return {**made, **{f"product{axis}": each for axis, each in products.items()}}

    def _axes(self, tensor: Tensor) -> list[int]:
        """The axes that have a basis."""
        if tensor.ndim < 2:
            return []
        return [axis for axis, n in enumerate(tensor.shape) if n <= self.max_size]


_NOT = (
    "soap cannot be differentiated: its bases are eigenvectors, which have no derivative where "
    "eigenvalues are equal. Use another optimizer there, such as fl.optim.adamw."
)


def _like(number: Any, tensor: Tensor) -> Any:
    """A number that is a tensor, in the dtype of another."""
    return number.to(tensor.dtype) if isinstance(number, Tensor) else number

"""``implicit``: derivatives of a minimum with respect to what the loss is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from fnloop.names.arguments import bounded
from fnloop.names.keywords import explained
from fnloop.schemes.curvatures import hessian_product
from fnloop.schemes.solvers import conjugate_gradients, neumann_series
from fnloop.stages.base import GradStage
from fnloop.stages.unsharded import BY_FORWARD_MODE, refuse_sharded
from fnloop.values.counts import as_count
from fnloop.values.state import State
from fnloop.values.tensors import Tensors
from fnloop.values.underivable import undifferentiated

Solver: TypeAlias = Callable[[Callable[[Tensors], Tensors], Tensors], Tensors]


@explained
def implicit(
    stage: GradStage,
    state: State,
    batch: Any,
    solver: Literal["cg", "neumann"] = "cg",
    steps: int = 50,
    damping: Annotated[float, bounded(0)] = 0.0,
    rate: Annotated[float, bounded(0, above=True)] | None = None,
    tolerance: Annotated[float, bounded(0)] = 1e-6,
) -> State:
    """The state of a minimum, with the derivatives that the implicit function theorem gives it.

    The values are those of `state`. At a minimum w the gradient of the inner loss is zero, whatever
    its hyperparameters h are, so that ``dw/dh = -inverse Hessian @ d gradient/dh`` (Larsen et al.,
    1996; Pedregosa, 2016, https://arxiv.org/abs/1602.02355). How the minimum was reached plays no
    part: the memory is that of one gradient, where `fl.unroll` keeps all steps.

    What can have a derivative is all that the stage's gradient depends on: tensors in its loss and
    in the batch. By ``torch.autograd``, ``torch.func.grad`` and ``torch.func.jvp``, of first order.
    Weight decay of the optimizer is no part of the loss; write it into it. The error is
    proportional to the distance from the minimum: ``stage(state, batch)[1].mean.norm()`` should be
    small. What the derivative costs are up to `steps` products with the Hessian, each some three
    gradients.

    Args:
        stage: The gradient stage of the inner loss, such as ``fl.grad(loss)``.
        state: Of the minimum. Derivatives that its parameters carry are dropped.
        batch: All of the data that the inner loss is of; by parts with `fl.accumulate`.
        solver: ``"cg"``, conjugate gradients, for a loss that curves upwards in all directions;
            ``"neumann"``, the Neumann series (Lorraine et al., 2020,
            https://arxiv.org/abs/1911.02590), which is what ``steps + 1`` steps of gradient descent
            at `rate` give if they are unrolled.
        steps: The most products with the Hessian. Where numbers cannot be looked at, all are made.
        damping: Added to the Hessian's diagonal.
        rate: Of ``"neumann"``: below 2 over the Hessian's largest eigenvalue
            (`fl.schemes.sharpness`).
        tolerance: Of ``"cg"``: how much of the right side may be left.

    Raises:
        TypeError: `steps` is not a whole number.
        ValueError: `stage` is sharded; there is no such solver, or `rate` is missing. In the
            backward pass: the loss curves downwards (the derivative is nan under ``torch.func``).
        RuntimeError: In a derivative of a derivative.

    >>> import torch, fnloop as fl
    >>> def at_minimum(decay):  # of (w - 3) ** 2 + decay * w ** 2: at w = 3 / (1 + decay)
    ...     def loss(model, batch):
    ...         return ((model.weight - batch) ** 2 + decay * model.weight**2).sum()
    ...     found = implicit(fl.grad(loss), state, torch.tensor([3.0]))
    ...     return found.params["weight"].sum()
    >>> state = fl.grad(lambda model, batch: model.weight.sum()).init(torch.nn.Linear(1, 1))
    >>> state = state.replace(params={**state.params, "weight": torch.tensor([[2.0]])})
    >>> torch.func.grad(at_minimum)(torch.tensor(0.5))  # -3 / 1.5 ** 2
    tensor(-1.3333)
    """
    refuse_sharded(stage, "implicit", BY_FORWARD_MODE)
    solve = _solver(solver, as_count(steps, "implicit(steps=)", 1), rate, tolerance)
    there = state.replace(params=state.params.detach())
    gradient = stage(there, batch)[1].mean

    def product(vector: Tensors) -> Tensors:
        # Else the graph of all products would be kept.
        found = hessian_product(stage, there, batch, vector).wide().detach()
        return found.add(vector.scale(damping)) if damping else found

    def solved(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return solve(product, Tensors.of(gradient.layout, parts).detach()).storages

    move: Any = _Solved.apply
    moves = Tensors.of(gradient.layout, move(solved, *gradient.storages))
    params = there.params.select(gradient)
    return there.replace(params=there.params.updated(params.sub(moves).cast(params)))


def _solver(name: str, steps: int, rate: float | None, tolerance: float) -> Solver:
    if name == "cg":
        return lambda product, b: conjugate_gradients(product, b, steps, tolerance)
    if rate is None:
        raise ValueError(
            'implicit(solver="neumann") takes a rate below 2 over the largest eigenvalue of the '
            "Hessian: rate=1 / float(fl.schemes.sharpness(stage, state, batch))."
        )
    return lambda product, b: neumann_series(product, b, steps, rate)


class _Solved(torch.autograd.Function):
    """Zeros, whose derivative with respect to some gradients is the inverse Hessian."""

    generate_vmap_rule = True

    @staticmethod
    def forward(solved: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple([torch.zeros_like(g) for g in gradients])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.solved = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        return None, *_guarded(ctx.solved(given), ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _guarded(ctx.solved(tangents[1:]), ctx.saved_tensors)


def _guarded(found: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple([undifferentiated(each, _ONCE, *gradients) for each in found])


_ONCE = (
    "implicit has derivatives of first order only: that of a derivative would need how the "
    "minimum moves along. Use fl.unroll for it."
)

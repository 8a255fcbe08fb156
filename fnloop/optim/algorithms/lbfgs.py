"""L-BFGS: a quasi-Newton method that evaluates the loss several times in a step."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from fnloop.names.arguments import bounded
from fnloop.optim.base import Evaluate, Memory, Optimizer, Step
from fnloop.optim.curvature import Curvature
from fnloop.optim.quasi_newton import Rules
from fnloop.optim.vectors import joined, parted
from fnloop.schedules.ranges import NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.choice import Flag, both, invert, select
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.tensors import Tensors


@tree
class lbfgs(Optimizer):
    """L-BFGS (Liu & Nocedal, 1989); ``torch.optim.LBFGS``.

    A step is up to `max_iter` iterations on one batch. Each computes a direction from the last
    moves, and searches along it for a point where the loss has fallen enough and its slope has
    flattened (the strong Wolfe conditions). For losses without noise: one batch of all data, and
    mostly float64.

    The loss is evaluated again by the gradient stage that stands before `fl.update`, so each
    evaluation has its `fl.accumulate`, its ranks, and the same random numbers. What is reported,
    and the buffers, are of the first one. It stands alone in `fl.update`: in a chain, or for some
    of the parameters by a mask, it is refused; ``fl.grad(only=...)`` chooses parameters.

    As in torch, an evaluation is made first, and then at most `max_eval` others. Where numbers
    can be looked at it stops when it is done. Compiled, vmapped or on an accelerator, `max_eval`
    evaluations are always made, and those after the end count for nothing: choose a small number
    there, and take more steps.

    Args:
        lr: The length that is tried first along a direction; without a line search, the length.
        max_iter: The most iterations in a step.
        max_eval: After so many evaluations no further iteration begins; by default 5/4 of
            `max_iter`.
        tolerance_grad: The step ends where no gradient is larger.
        tolerance_change: It ends where no value moved by more, or the loss changed by less.
        history_size: Number of moves that are remembered; each takes twice the memory of the
            parameters. (In torch 100 by default.)
        line_search: None for moves of length `lr`, which cost one evaluation each.
        name: Key of its memory and prefix of its hyperparameters.

    Raises:
        TypeError: A number of iterations is not a whole number.
        ValueError: It is below 1, or there is no such line search.

    >>> import fnloop as fl
    >>> def rosenbrock(model, batch):
    ...     x, y = model.weight[0]
    ...     return (1 - x) ** 2 + 100 * (y - x**2) ** 2
    >>> step = fl.pipe(rosenbrock, fl.grad, fl.update(lbfgs(max_iter=50)))
    >>> state = step.init(lambda: torch.nn.Linear(2, 1, bias=False, dtype=torch.float64), seed=0)
    >>> new, metrics = step(state, torch.zeros(1))
    >>> [round(value, 2) for value in new.params["weight"][0].tolist()]
    [1.0, 1.0]
    """

    evaluates: ClassVar[bool] = True
    lr: NonNegative = 1.0
    max_iter: int = 20
    max_eval: int | None = None
    tolerance_grad: Annotated[float, bounded(0)] = 1e-7
    tolerance_change: Annotated[float, bounded(0)] = 1e-9
    history_size: int = 10
    line_search: Literal["strong_wolfe"] | None = "strong_wolfe"
    name: str = "lbfgs"

    def __post_init__(self) -> None:
        for field in ("max_iter", "max_eval", "history_size"):
            value = getattr(self, field)
            if value is not None or field != "max_eval":
                object.__setattr__(self, field, as_count(value, f"lbfgs({field}=...)", 1))

    def init_state(self, params: Tensors) -> dict[str, Any]:
        like = joined(params.whole().wide(), params.whole())
        return {
            **Curvature.empty(self.history_size, like)._asdict(),
            "move": torch.zeros_like(like),
            "gradient": torch.zeros_like(like),
            "iterations": torch.zeros((), dtype=torch.int64, device=like.device),
            "evaluations": torch.zeros((), dtype=torch.int64, device=like.device),
        }

    def search(
        self,
        evaluate: Evaluate,
        loss: Tensor,
        grads: Tensors,
        memory: Memory,
        params: Tensors,
        step: Step,
        finite: Flag,
    ) -> tuple[Tensors, Memory]:
        (lr,) = self.at(step, "lr")
        asked = both(finite, look(torch.as_tensor(lr, device=loss.device) > 0))
        if asked is False:
            return params, memory
        own, whole = memory[self.name], params.whole()
        x, gradient = _vector(params, whole), _vector(grads, whole)
        rules = self._rules(lr, loss, grads, whole)
        moves = both(asked, invert(rules.is_flat(gradient)))
        before = Curvature(**{field: own[field] for field in Curvature._fields})
        curvature = rules.taught(before, own["move"], gradient - own["gradient"])
        run = rules.begun(x, loss, gradient, curvature, look(own["iterations"] == 0))
        goes_on = both(moves, run.goes_on)
        for _ in range(rules.trials):
            if goes_on is False:
                break
            value, found = evaluate(_there(run.next, params, whole, grads))
            run = select(goes_on, rules.after(run, value, _vector(found, whole)), run)
            goes_on = both(goes_on, run.goes_on)
        made = {
            **run.curvature._asdict(),
            "move": run.move,
            "gradient": run.gradient,
            "iterations": own["iterations"] + run.iterations,
            "evaluations": torch.zeros_like(own["evaluations"]) + run.evaluations,
        }
        made = {key: value.to(own[key].dtype) for key, value in made.items()}
        flat = select(asked, {**own, "evaluations": torch.ones_like(own["evaluations"])}, own)
        new = select(moves, _there(run.x, params, whole, grads), params)
        return new, {**memory, self.name: select(moves, made, flat)}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return {f"{self.name}.evaluations": memory[self.name]["evaluations"]}

    def _rules(self, lr: Any, loss: Tensor, grads: Tensors, whole: Tensors) -> Rules:
        reached = None
        if len(grads) < len(whole):
            reached = _vector(Tensors({n: torch.ones_like(p) for n, p in grads.items()}), whole)
        return Rules(
            lr,
            self.max_iter,
            self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval,
            self.tolerance_grad,
            self.tolerance_change,
            self.line_search is not None,
            reached,
            0.0,
        ).as_of(loss)


def _vector(tensors: Tensors, whole: Tensors) -> Tensor:
    return joined(tensors.whole().wide(), whole)


def _there(vector: Tensor, params: Tensors, whole: Tensors, grads: Tensors) -> Tensors:
    """The parameters of a vector; those without a gradient as they are."""
    there = parted(vector, whole, grads).cast(whole.select(grads))
    return params.updated(params.select(grads).like(there))

"""Iterations of L-BFGS: directions, a search along each, and when to stop; by one evaluation each.

Torch's loops turned inside out: `Search` is all that is known between two evaluations, and
`Rules.after` what follows from one. Where numbers can be looked at, only what is needed is
computed; where they cannot, both outcomes are, and one is selected.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from fnloop.optim.curvature import Curvature
from fnloop.optim.line_search import Line, Number, Trial, advanced, begun, least
from fnloop.values.choice import Flag, both, choose, either, invert, select
from fnloop.values.looking import look


class Search(NamedTuple):
    """What is known between two evaluations.

    Attributes:
        x: The parameters where the line begins; at the end, the best ones.
        direction: Of the line.
        line: How far the search along it is.
        curvature: What earlier moves have told.
        move: The last move, if the run has ended with one; else zeros.
        iterations: Directions so far, in this step.
        evaluations: In this step.
        goes_on: Whether there is more to evaluate.
    """

    x: Tensor
    direction: Tensor
    line: Line
    curvature: Curvature
    move: Tensor
    iterations: Number
    evaluations: Number
    goes_on: Flag

    @property
    def next(self) -> Tensor:
        """Where to evaluate."""
        return self.x + self.line.length * self.direction

    @property
    def gradient(self) -> Tensor:
        """The gradient before the last move."""
        return self.line.start.gradient


class Rules(NamedTuple):
    """The numbers of `fl.optim.lbfgs`, at this step.

    Attributes:
        lr: The length that is tried first.
        max_iter: The most directions.
        max_eval: No direction begins after so many evaluations.
        tolerance_grad: It ends where no gradient is larger.
        tolerance_change: It ends where values, or the loss, change by less.
        searches: Whether it searches along the line.
        reached: 1 for the values that have a gradient, else 0; None if all have one.
        zero: The number 0, as a float if numbers can be looked at.
    """

    lr: Number
    max_iter: int
    max_eval: int
    tolerance_grad: Number
    tolerance_change: Number
    searches: bool
    reached: Tensor | None
    zero: Number

    def as_of(self, loss: Tensor) -> Self:
        """With its numbers as those of the loss: floats if it can be looked at, else tensors.

        A selection between two floats would be float32.
        """
        numbers = (self.lr, self.tolerance_grad, self.tolerance_change)
        if isinstance(look(loss), Tensor):
            zero = torch.zeros_like(loss, requires_grad=False)
            lr, grad, change = (zero + number for number in numbers)
            return self._replace(lr=lr, tolerance_grad=grad, tolerance_change=change, zero=zero)
        lr, grad, change = map(look, numbers)
        return self._replace(lr=lr, tolerance_grad=grad, tolerance_change=change, zero=0.0)

    @property
    def trials(self) -> int:
        """The most evaluations after the first."""
        return self.max_eval if self.searches else min(self.max_eval, self.max_iter - 1)

    def begun(
        self, x: Tensor, loss: Tensor, gradient: Tensor, curvature: Curvature, fresh: Flag
    ) -> Search:
        """A run, after its first evaluation; the first of all runs if it is `fresh`."""
        total = look(gradient.abs().sum().double())
        start = Trial(self.zero, finite_or_infinite(loss, gradient), self.zero, gradient)
        cautious = least(1.0 + self.zero, 1 / select(total == 0, 1.0 + self.zero, total)) * self.lr
        length = select(fresh, cautious, self.lr)
        return self._turned(x, start, curvature, length, self.zero, self.zero + 1)

    def after(self, run: Search, loss: Tensor, gradient: Tensor) -> Search:
        """The run after an evaluation at ``run.next``."""
        line, evaluations = run.line, run.evaluations + 1
        slope = look((gradient @ run.direction).double())
        new = Trial(line.length, finite_or_infinite(loss, gradient), slope, gradient)
        if self.searches:
            reach = look(run.direction.abs().max().double())
            last = evaluations > self.max_eval
            line, over, end = advanced(line, new, last, reach)
        else:
            over, end = new.loss == new.loss, select(new.loss < torch.inf, new, line.start)
        run = run._replace(evaluations=evaluations)
        return choose(over, lambda: self._moved(run, end), lambda: run._replace(line=line))

    def _moved(self, run: Search, end: Trial) -> Search:
        """The run after a move to the end of a search: at its own end, or with a new direction."""
        move, start = end.length * run.direction, run.line.start
        enough = run.iterations >= self.max_iter
        enough = either(enough, run.evaluations >= self.max_eval)
        enough = either(enough, self.is_flat(end.gradient))
        enough = either(enough, look(move.abs().max().double()) <= self.tolerance_change)
        enough = either(enough, abs(end.loss - start.loss) < self.tolerance_change)
        x = run.x + move

        def turned() -> Search:
            curvature = self.taught(run.curvature, move, end.gradient - start.gradient)
            return self._turned(x, end, curvature, self.lr, run.iterations, run.evaluations)

        return choose(enough, lambda: run._replace(x=x, move=move, goes_on=self.zero != 0), turned)

    def _turned(
        self, x: Tensor, at: Trial, curvature: Curvature, length: Number, n: Number, k: Number
    ) -> Search:
        """The run with a new direction from `x`, after `n` others and `k` evaluations."""
        direction = self._reached(-curvature.times(at.gradient))
        slope = look((at.gradient @ direction).double())
        start = Trial(self.zero, at.loss, slope, at.gradient)
        falls = slope <= -self.tolerance_change
        move, n = torch.zeros_like(x), n + 1
        if not self.searches:  # the last move is not evaluated
            last = both(falls, n >= self.max_iter)
            move = select(last, length * direction, move)
            x, falls = x + move, both(falls, invert(last))
        line = begun(start, length, self.zero)
        return Search(x, direction, line, curvature, move, n, k, falls)

    def taught(self, curvature: Curvature, move: Tensor, change: Tensor) -> Curvature:
        """What is known after a move, and the change of the gradient along it."""
        return curvature.taught(self._reached(move), self._reached(change))

    def is_flat(self, gradient: Tensor) -> Flag:
        """Whether no gradient is large enough to go on."""
        return look(gradient.abs().max().double()) <= self.tolerance_grad

    def _reached(self, vector: Tensor) -> Tensor:
        return vector if self.reached is None else vector * self.reached


def finite_or_infinite(loss: Tensor, gradient: Tensor) -> Number:
    """A loss as a number; infinity if it or its gradient is not finite."""
    total = gradient.sum().double() + loss
    return look(torch.where(total - total == 0, loss, torch.inf))

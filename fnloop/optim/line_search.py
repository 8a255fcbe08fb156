"""The search along a line for a point that meets the strong Wolfe conditions, trial by trial.

It is written as what follows from one evaluation, rather than as a loop that evaluates: so the same
lines serve where numbers can be looked at, and where all that is known of them is a tensor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.values.choice import Flag, both, either, invert, select

SUFFICIENT, CURVATURE = 1e-4, 0.9
"""The constants of the two conditions, as for quasi-Newton methods in Nocedal & Wright."""

SHORTEST = 1e-9
"""No value moves by more than this between the ends of an interval: there is no need to go on."""

Number = Any
"""A float where it can be looked at, else a tensor float64[]."""


class Trial(NamedTuple):
    """What is known of a point ``x + length * direction``.

    Attributes:
        length: How far along the direction.
        loss: The loss there; infinity if it, or its gradient, is not finite.
        slope: Its derivative along the direction.
        gradient: Its gradient: a vector.
    """

    length: Number
    loss: Number
    slope: Number
    gradient: Tensor


class Line(NamedTuple):
    """How far a search is.

    Attributes:
        start: The point of length 0.
        low: Before the interval is found, the last trial; then its end of the lower loss.
        high: The other end.
        found: Whether there is an interval that has a good point inside.
        slow: Whether the last trial was close to an end.
        tries: The number of trials.
        length: Where to try next.
    """

    start: Trial
    low: Trial
    high: Trial
    found: Flag
    slow: Flag
    tries: Number
    length: Number


def begun(start: Trial, length: Number, zero: Number) -> Line:
    """A search whose first trial is at `length`; `zero` is the number 0."""
    no = zero != 0
    return Line(start, start, start, no, no, zero, length)


def advanced(line: Line, new: Trial, last: Flag, reach: Number) -> tuple[Line, Flag, Trial]:
    """What follows from a trial: algorithms 3.5 and 3.6 of Nocedal & Wright (2006), with cubics.

    Follows ``torch.optim.LBFGS`` to rounding, which follows Schmidt's minFunc; other than these, it
    turns back from a loss that is not finite.

    Args:
        line: The search.
        new: The trial at ``line.length``.
        last: Whether there may be no other.
        reach: The largest absolute value of the direction.

    Returns:
        The search with the next length; whether it is over; and with which point.
    """
    start, low, tries = line.start, line.low, line.tries + 1
    bound = start.loss + SUFFICIENT * new.length * start.slope
    follows = either(line.found, tries > 2)
    rises = either(new.loss > bound, both(follows, new.loss >= low.loss))
    good = both(invert(rises), abs(new.slope) <= -CURVATURE * start.slope)
    ahead = select(line.found, line.high.length - low.length, 1.0 + 0.0 * new.length)
    closes = either(rises, new.slope * ahead >= 0)
    lower = low.loss <= new.loss
    best = select(closes, select(lower, low, new), new)
    other = select(closes, select(lower, new, low), line.high)
    found = either(line.found, closes)
    short = both(found, abs(other.length - best.length) * reach < SHORTEST)
    result = select(good, new, best)
    # Where there is no interval yet and may be no other trial, the start is an end of it.
    only = both(last, invert(line.found))
    result = select(only, select(start.loss <= new.loss, start, new), result)
    over = either(last, either(good, short))
    beyond = _cubic(low, new, new.length + 0.01 * (new.length - low.length), 10 * new.length)
    inside, slow = _inside(best, other, line.slow)
    length, slow = select(found, inside, beyond), both(found, slow)
    return Line(start, best, other, found, slow, tries, length), over, result


def _inside(a: Trial, b: Trial, slow: Flag) -> tuple[Number, Flag]:
    """Where to try in an interval; and whether that is close to an end, for once."""
    left, right = least(a.length, b.length), most(a.length, b.length)
    length = _cubic(a, b, left, right)
    margin = 0.1 * (right - left)
    close = least(right - length, length - left) < margin
    moves = both(close, either(slow, either(length >= right, length <= left)))
    nearer = abs(length - right) < abs(length - left)
    away = select(nearer, right - margin, left + margin)
    return select(moves, away, length), both(close, invert(moves))


def _cubic(a: Trial, b: Trial, low: Number, high: Number) -> Number:
    """The minimum between two bounds of the cubic with two points' losses and slopes.

    The middle if there is none. Equation 3.59 of Nocedal & Wright (2006).
    """
    forward = a.length <= b.length
    gap = a.length - b.length
    d1 = a.slope + b.slope - 3 * _ratio(a.loss - b.loss, gap)
    square = d1 * d1 - a.slope * b.slope
    d2 = _sqrt(square)
    before, after = select(forward, a.slope, b.slope), select(forward, b.slope, a.slope)
    right = most(a.length, b.length)
    found = right - abs(gap) * _ratio(after + d2 - d1, after - before + 2 * d2)
    exists = both(square >= 0, found - found == 0)
    return select(exists, least(most(found, low), high), (low + high) / 2)


def _ratio(a: Number, b: Number) -> Number:
    """``a / b``, and `a` where `b` is zero: no number that is used."""
    return a / select(b == 0, 1.0 + 0.0 * b, b)


def _sqrt(x: Number) -> Number:
    """The square root; of what is not positive 0, without a derivative."""
    if isinstance(x, Tensor):
        positive = x > 0
        return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
    return math.sqrt(x) if x > 0 else 0.0


def least(a: Number, b: Number) -> Number:
    """The smaller number."""
    return select(a <= b, a, b)


def most(a: Number, b: Number) -> Number:
    """The larger number."""
    return select(a >= b, a, b)

"""``find_lr``: the learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from fnloop.data.rereading import as_rereadable
from fnloop.effects.screens import screen
from fnloop.loop.checks import check_slots
from fnloop.loop.progress import progress as Progress
from fnloop.loop.run import run
from fnloop.names.keywords import explained
from fnloop.stages.base import Stage
from fnloop.stages.lift import stage
from fnloop.trees.show import short
from fnloop.tuning.lr_search import LrSearch, running_average
from fnloop.tuning.rates import rate_of, with_free_rate, with_rate
from fnloop.values.counts import as_count, as_number
from fnloop.values.metrics import stop
from fnloop.values.stacked import members_of
from fnloop.values.state import State


@explained
def find_lr(
    step: Any,
    state: State,
    data: Any,
    name: str | None = None,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    steps: int = 100,
    spacing: Literal["exponential", "linear"] = "exponential",
    smoothing: float = 0.8,
    stop_at: float | None = 4.0,
    metric: str | None = None,
    progress: bool | None = None,
) -> LrSearch:
    """Try learning rates from small to large, one a step, and suggest one.

    This is the learning-rate range test (Smith, 2015, section 3.3): train on, raise the rate at
    each step, and look where the loss falls. It trains a copy: `state` is the same afterwards to
    the bit, with its place in the data and its randomness. The rate of a step is the candidate,
    exactly, in place of a number, a schedule, and what `fl.scale` has made of it.

    Args:
        step: A training step, compiled or not; compiled, it takes one graph for all rates.
        state: Where to start: from ``step.init(model)``, or of a run.
        data: Whatever `fl.run` takes, but an iterator, which would not be the same afterwards.
        name: Which learning rate, as in `fl.scale`: ``"head.adamw.lr"``, or
            ``"generator/adamw.lr"`` in a part of `fl.sequence`. Default the only one. The others
            stay as they are.
        min_lr, max_lr: The first and the last candidate.
        steps: Number of candidates.
        spacing: ``"exponential"`` or ``"linear"``.
        smoothing: Decay of the running average of the losses, from 0 to below 1: ``1 / (1 -
            smoothing)`` losses count.
        stop_at: End where the running average is above its lowest value by ``stop_at - 1`` times
            that value's size: at ``stop_at`` times it. None goes on to the end.
        metric: What is to fall; default the loss, of the part that the rate belongs to.
        progress: Whether to show an `fl.progress`; default where somebody can see it.

    Returns:
        An `LrSearch`, with ``suggestion``, ``lrs``, ``losses``, ``smoothed`` and ``plot()``.

    Raises:
        TypeError: There are several learning rates and no `name`, or the data is an iterator.
        ValueError: There is no such learning rate or metric, an argument is out of range, or the
            state is a population.

    >>> import torch, fnloop as fl
    >>> x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    >>> data = fl.Batches((x, x.sum(1, keepdim=True)), batch_size=32)
    >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(fl.schedules.cosine(0.1, 1000))))
    >>> state = step.init(lambda: torch.nn.Linear(4, 1), seed=0)
    >>> found = find_lr(step, state, data)
    >>> 0.01 < found.suggestion < 1.0, found.lrs[0], int(state.step)
    (True, 1e-07, 0)
    """
    check_slots(step, state)
    if not isinstance(step, Stage):
        raise TypeError(
            "find_lr takes a step made by fl.pipe(loss, fl.grad, fl.update(optimizer)), whose "
            f"learning rate it can set; got the function {short(step)}."
        )
    if members_of(state) is not None:
        raise ValueError(
            f"find_lr tries one rate a step, and this state has {members_of(state)} members. With "
            "one of them: find_lr(step.uncompiled.member(i), fl.member(state, i), data). Members "
            "with rates of their own are compared by fl.sweep and fl.tuning.halving."
        )
    candidates = spaced(min_lr, max_lr, steps, spacing)
    smoothing = as_number(smoothing, "find_lr(smoothing=...)")
    if smoothing >= 1:
        raise ValueError(f"find_lr(smoothing=...) takes a number from 0 to below 1: {smoothing:g}.")
    if stop_at is not None:
        stop_at = as_number(stop_at, "find_lr(stop_at=...)", 1.0, above=True)
    source = as_rereadable(data, "find_lr")
    rate = rate_of(state, name)
    step, every = with_free_rate(step, rate)
    folder, slash, _ = rate.rpartition("/")
    watched = metric or f"{folder}{slash}loss"
    test = _Test(rate, watched, candidates, smoothing, stop_at)
    shown = screen() is not None if progress is None else progress
    effects = [Progress(names=[watched, rate])] if shown else []
    loop = run(
        step,
        with_rate(state, rate, candidates[0]),
        source,
        steps=len(candidates) * every,
        callbacks=[stage(test.look, "callback"), *effects],
    )
    for _ in loop:
        pass
    tried = candidates[: len(test.losses)]
    return LrSearch(rate, tried, test.losses, smoothing, len(candidates), test.weights)


def spaced(
    low: float, high: float, n: int, spacing: Literal["exponential", "linear"]
) -> list[float]:
    """`n` learning rates; the first is `low`, the last is `high`.

    Raises:
        ValueError: A bound is not above 0 and finite, `low` is not below `high`, `n` is below 2, or
            there is no such spacing.

    >>> spaced(0.25, 4.0, 3, "exponential"), spaced(1.0, 2.0, 3, "linear")
    ([0.25, 1.0, 4.0], [1.0, 1.5, 2.0])
    """
    low = as_number(low, "find_lr(min_lr=...)", above=True)
    high = as_number(high, "find_lr(max_lr=...)", above=True)
    if not low < high < math.inf:
        raise ValueError(
            f"find_lr goes from min_lr to max_lr, which must be larger; got {low:g} and {high:g}."
        )
    last = as_count(n, "find_lr(steps=...)", 2) - 1
    if spacing == "exponential":
        found = [low * (high / low) ** (k / last) for k in range(last)]
    elif spacing == "linear":
        found = [low + (high - low) * (k / last) for k in range(last)]
    else:
        raise ValueError(f'find_lr(spacing=...) takes "exponential" or "linear", got {spacing!r}.')
    return [*(min(max(lr, low), high) for lr in found), high]


class _Test:
    """Reads the loss after each step, and sets the rate of the next."""

    def __init__(
        self,
        rate: str,
        metric: str,
        candidates: list[float],
        smoothing: float,
        stop_at: float | None,
    ) -> None:
        self.losses: list[float] = []
        self._weights: list[float] = []
        self._rate, self._metric, self._candidates = rate, metric, candidates
        self._smoothing, self._stop_at = smoothing, stop_at

    def look(self, state: State, metrics: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        if self._rate not in metrics:  # a part of a sequence whose turn it was not
            return state, metrics
        if self._metric not in metrics:
            raise ValueError(
                f"find_lr looks at {self._metric!r}, which this step does not report. Choose "
                f"another, find_lr(..., metric=...), of: {', '.join(metrics)}."
            )
        lr, used = self._candidates[len(self.losses)], float(metrics[self._rate])
        if not math.isclose(lr, used, rel_tol=1e-6):
            raise RuntimeError(
                f"find_lr asked for {self._rate} = {lr:g}, and the step used {used:g}. Usual "
                "cause: an optimizer of your own around others that does not pass on "
                "with_values(values)."
            )
        self.losses.append(float(metrics[self._metric]))
        self._weights.append(float(getattr(metrics[self._metric], "weight", 1.0)))
        reason = self._reason()
        if reason:
            return state, {**metrics, "find_lr": stop(True, reason)}
        return with_rate(state, self._rate, self._candidates[len(self.losses)]), metrics

    @property
    def weights(self) -> list[float]:
        """Of the losses, such as their numbers of examples; none where all are equal."""
        return self._weights if len(set(self._weights)) > 1 else []

    def _reason(self) -> str:
        """Why to stop; empty to go on."""
        if len(self.losses) == len(self._candidates):
            return "all candidates are tried"
        averages = [
            a
            for a in running_average(self.losses, self._smoothing, self.weights)
            if math.isfinite(a)
        ]
        if not averages or not math.isfinite(self.losses[-1]):
            skips = self.losses[-_SKIPS:]
            lost = len(skips) == _SKIPS and not any(map(math.isfinite, skips))
            return "the loss is not finite" if lost else ""
        best = min(averages)
        if self._stop_at is None or averages[-1] <= best + (self._stop_at - 1) * abs(best):
            return ""
        return f"the loss is above {self._stop_at:g} times its lowest"


_SKIPS = 16
"""Skipped steps in a row that end the test; a loss scale for fp16 finds its size in fewer."""

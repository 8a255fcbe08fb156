"""Schedulers of torch as schedules: closed forms, or the numbers that they give."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.lightning.configured import Scheduled
from fnloop.schedules.base import Schedule
from fnloop.schedules.decay import cosine, step_decay
from fnloop.trees.nodes import tree


@tree
class Tabled(Schedule):
    """The numbers that a scheduler of torch gave when it was run in advance.

    Attributes:
        base: What all of them are multiplied by: the optimizer's own learning rate.
        factors: float64[n]; the last one holds from then on.
        steps: Optimizer steps for which each holds.

    >>> schedule = Tabled(0.1, torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64), steps=2)
    >>> [schedule(step) for step in (0, 1, 2, 9)]
    [0.1, 0.1, 0.05, 0.025]
    """

    base: Any
    factors: Tensor
    steps: int = 1

    def compute(self, step: Any) -> Any:
        last = self.factors.shape[-1] - 1
        if isinstance(step, Tensor):
            row = (step // self.steps).clamp(0, last).long()
            return self.base * self.factors.to(step.device).index_select(0, row.reshape(1))[0]
        factor = self.factors[min(max(int(step // self.steps), 0), last)]
        return self.base * (factor if factor.requires_grad else factor.item())


def schedules_of(
    schedulers: Sequence[Scheduled], per_epoch: int | None, epochs: int | None
) -> list[dict[str, Any]]:
    """The hyperparameters that schedulers change, as schedules.

    Args:
        schedulers: Those of one optimizer, none of which watches a metric; they are stepped.
        per_epoch: Optimizer steps in an epoch; None if unknown.
        epochs: Epochs of the run; None if unknown.

    Returns:
        For each parameter group, by name: ``"lr"``, ``"momentum"``, ``"betas"`` (of the first of
        them), ``"weight_decay"``.

    Raises:
        ValueError: The length of an epoch or of the run is needed, and unknown.

    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    >>> every = Scheduled(torch.optim.lr_scheduler.StepLR(sgd, step_size=2, gamma=0.5))
    >>> schedules_of([every], per_epoch=10, epochs=None)
    [{'lr': step_decay(start=0.1, rate=0.5, steps=20)}]
    """
    groups: list[dict[str, Any]] = schedulers[0].scheduler.optimizer.param_groups
    if per_epoch is None and any([each.interval == "epoch" for each in schedulers]):
        raise ValueError(
            f"{_names(schedulers)} counts epochs, and how many steps an epoch has is unknown. Give "
            "the data, or data that knows its length: fl.lightning.step(module, data)."
        )
    by_epoch = all([each.interval == "epoch" for each in schedulers])
    unit = per_epoch if by_epoch and per_epoch else 1
    total = None if epochs is None or per_epoch is None else per_epoch * epochs
    if len(schedulers) == 1:
        closed = [_closed(schedulers[0], i, unit, total) for i in range(len(groups))]
        if None not in closed:
            return [{"lr": schedule} for schedule in closed]
    ticks = _last(schedulers, per_epoch) + 1 if total is None else total
    rows = _run(schedulers, groups, -(-ticks // unit), 1 if by_epoch else per_epoch)
    return [_tabled([row[i] for row in rows], group, unit) for i, group in enumerate(groups)]


def _closed(given: Scheduled, group: int, unit: int, total: int | None) -> Any:
    """The schedule of a scheduler with a closed form; None for others."""
    scheduler, each, kinds = given.scheduler, given.frequency * unit, torch.optim.lr_scheduler
    kind = type(scheduler)
    known = (kinds.StepLR, kinds.ExponentialLR, kinds.CosineAnnealingLR)
    if kind not in known or given.within is not None:
        return None
    if scheduler.last_epoch != 0:  # it goes on from somewhere
        return None
    lr = float(scheduler.base_lrs[group])
    if kind is kinds.StepLR:
        return step_decay(lr, float(scheduler.gamma), steps=scheduler.step_size * each)
    if kind is kinds.ExponentialLR:
        return step_decay(lr, float(scheduler.gamma), steps=each)
    if each == 1 and total and total <= scheduler.T_max:
        return cosine(lr, steps=scheduler.T_max, end=float(scheduler.eta_min))
    return None


_LASTS = {"LinearLR": "total_iters", "ConstantLR": "total_iters", "PolynomialLR": "total_iters"}


def _last(schedulers: Sequence[Scheduled], per_epoch: int | None) -> int:
    """The step from which on all of them change nothing any more."""
    found = list[int]()
    for given in schedulers:
        kind, scheduler = type(given.scheduler).__name__, given.scheduler
        if kind in _LASTS:
            last = getattr(scheduler, _LASTS[kind])
        elif kind == "MultiStepLR":
            last = max(scheduler.milestones, default=0)
        elif kind == "OneCycleLR":
            last = scheduler.total_steps - 1
        else:
            raise ValueError(
                f"{kind} is run in advance, for as many steps as the run has, and that is "
                "unknown. Give the data and the epochs: fl.lightning.step(module, data, epochs=10)."
                " Of data without a length, fl.data.limit(data, n) tells the batches of an epoch."
            )
        if given.within is not None:  # so often in each epoch, which is known
            found.append(-(-last // max(len(given.within), 1)) * (per_epoch or 1))
            continue
        found.append(last * given.frequency * (per_epoch or 1 if given.interval == "epoch" else 1))
    return max(found)


def _run(
    schedulers: Sequence[Scheduled],
    groups: Sequence[dict[str, Any]],
    ticks: int,
    per_epoch: int | None,
) -> list[list[dict[str, float]]]:
    """The numbers of the groups at each tick, as Lightning steps the schedulers."""
    rows = list[list[dict[str, float]]]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a scheduler that is stepped before its optimizer
        for tick in range(1, ticks + 1):
            rows.append([_numbers(group) for group in groups])
            if tick == ticks:  # OneCycleLR cannot be stepped further
                break
            for given in schedulers:
                if _is_due(given, tick, per_epoch or 1):
                    given.scheduler.step()
    return rows


def _is_due(given: Scheduled, tick: int, per_epoch: int) -> bool:
    """Whether a scheduler is stepped after optimizer step `tick`, from 1."""
    if given.within is not None:
        return (tick - 1) % per_epoch + 1 in given.within
    return tick % (given.frequency * (per_epoch if given.interval == "epoch" else 1)) == 0


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    found = {n: float(group[n]) for n in ("lr", "momentum", "weight_decay") if n in group}
    return {**found, "betas": float(group["betas"][0])} if "betas" in group else found


def _tabled(rows: list[dict[str, float]], group: dict[str, Any], unit: int) -> dict[str, Any]:
    """What changes, as schedules; and the learning rate, which a scheduler may have set once."""
    found: dict[str, Any] = {"lr": rows[0]["lr"]}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if len(set(values)) > 1:
            base = float(group.get("initial_lr", 1.0) or 1.0) if name == "lr" else 1.0
            factors = torch.tensor([v / base for v in values], dtype=torch.float64)
            found[name] = Tabled(base, factors, steps=unit)
    return found


def _names(schedulers: Sequence[Scheduled]) -> str:
    return ", ".join([type(each.scheduler).__name__ for each in schedulers])

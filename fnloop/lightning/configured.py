"""The forms of what ``configure_optimizers`` returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fnloop.trees.show import short


class Scheduled(NamedTuple):
    """A scheduler with its settings.

    Attributes:
        scheduler: Of ``torch.optim.lr_scheduler``.
        interval: ``"epoch"`` or ``"step"``.
        frequency: It is stepped at every so many of these.
        monitor: The metric that it is given; None for none.
        within: After which optimizer steps of an epoch it is stepped, from 1, in place of
            `frequency`; None where that is the same.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    within: tuple[int, ...] | None = None

    def counted(self, batches: int | None, accumulate: int) -> Scheduled:
        """The same by optimizer steps. Lightning counts batches, in each epoch from 1 on.

        Args:
            batches: Batches in an epoch; None if unknown.
            accumulate: Batches in a step; at its last batch an epoch may have one of fewer.

        Raises:
            ValueError: The number of batches is needed, and unknown; or it watches a metric, and
                an epoch is no whole number of what it waits for.

        >>> Scheduled(None, "step", 4).counted(batches=6, accumulate=1).within
        (4,)
        >>> Scheduled(None, "step", 4).counted(batches=8, accumulate=2).frequency
        2
        """
        if self.interval == "epoch" or self.frequency == 1:
            return self
        kind, every = type(self.scheduler).__name__, f"its frequency is {self.frequency}"
        if batches is None:
            raise ValueError(
                f"{kind} counts the batches of each epoch, as {every}, and how many these are is "
                "unknown. Give the data, or data that knows its length: "
                "fl.lightning.step(module, data)."
            )
        ends = [min(end, batches) for end in range(accumulate, batches + accumulate, accumulate)]
        within = tuple([i for i, end in enumerate(ends, 1) if end % self.frequency == 0])
        first = within[0] if within else len(ends) + 1
        if len(ends) % first == 0 and within == tuple(range(first, len(ends) + 1, first)):
            return self._replace(frequency=first)
        if is_plateau(self):
            raise ValueError(
                f"{kind} counts the batches of each epoch, and {every}: of the {batches} batches "
                "of an epoch some would be left over. Take a frequency that divides them, or "
                "interval 'epoch'."
            )
        return self._replace(within=within)


class Configured(NamedTuple):
    """An optimizer and its schedulers."""

    optimizer: torch.optim.Optimizer
    schedulers: tuple[Scheduled, ...]


def configured(result: Any, who: str, manual: bool = False) -> list[Configured]:
    """Normalize the result of ``configure_optimizers``.

    Args:
        result: An optimizer; several; a dict with ``"optimizer"`` and perhaps ``"lr_scheduler"``
            (a scheduler, or a dict of its settings); several such dicts; or a list of optimizers
            and a list of schedulers.
        who: The module's name, for messages.
        manual: Whether the module steps its optimizers itself.

    Raises:
        TypeError: It is none of these.
        ValueError: A setting of a scheduler is unknown or missing; or one watches a metric, and
            the module steps its optimizers itself, or its ``eps`` or ``min_lr`` cannot be kept.

    >>> from torch.optim.lr_scheduler import StepLR
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    >>> (found,) = configured(([sgd], [StepLR(sgd, 2)]), "Model")
    >>> found.optimizer is sgd, found.schedulers[0].interval
    (True, 'epoch')
    """
    optimizers, schedulers = _split(result, who)
    found = [_scheduled(each, who) for each in schedulers]
    for one in found:
        if is_plateau(one):
            _check_plateau(one, who, manual)
        if not any([one.scheduler.optimizer is o for o in optimizers]):
            raise ValueError(
                f"{who}.configure_optimizers returns the scheduler "
                f"{type(one.scheduler).__name__} of an optimizer that it does not return."
            )
    return [
        Configured(o, tuple([each for each in found if each.scheduler.optimizer is o]))
        for o in optimizers
    ]


def _split(result: Any, who: str) -> tuple[list[Any], list[Any]]:
    """All optimizers and all schedulers, with their settings."""
    if isinstance(result, torch.optim.Optimizer):
        return [result], []
    if isinstance(result, Mapping):
        return _of_dict(result, who)
    if isinstance(result, Sequence) and result and not isinstance(result, str):
        if len(result) == 2 and isinstance(result[0], (list, tuple)):
            second = result[1]
            return list(result[0]), list(second) if isinstance(second, (list, tuple)) else [second]
        if all([isinstance(each, torch.optim.Optimizer) for each in result]):
            return list(result), []
        if all([isinstance(each, Mapping) for each in result]):
            parts = [_of_dict(each, who) for each in result]
            return [o for own, _ in parts for o in own], [s for _, own in parts for s in own]
    hint = (
        "Without an optimizer nothing is trained; use fl.evaluate, or return one."
        if result is None
        else "Return an optimizer; a list of them; {'optimizer': ..., 'lr_scheduler': ...}; or "
        "[optimizers], [schedulers]."
    )
    raise TypeError(f"{who}.configure_optimizers returned {short(result)}. {hint}")


def _of_dict(given: Mapping[str, Any], who: str) -> tuple[list[Any], list[Any]]:
    if not isinstance(given.get("optimizer"), torch.optim.Optimizer):
        raise TypeError(
            f"{who}.configure_optimizers returned a dict of {', '.join(map(repr, given))}; it "
            "needs an 'optimizer', and may have an 'lr_scheduler'."
        )
    scheduler = given.get("lr_scheduler")
    if scheduler is None:
        return [given["optimizer"]], []
    if isinstance(scheduler, Mapping):
        return [given["optimizer"]], [scheduler]
    return [given["optimizer"]], [{"scheduler": scheduler, "monitor": given.get("monitor")}]


_KEYS = {"scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau"}


def _scheduled(given: Any, who: str) -> Scheduled:
    if not isinstance(given, Mapping):
        given = {"scheduler": given}
    if unknown := [key for key in given if key not in _KEYS]:
        raise ValueError(
            f"{who}.configure_optimizers gives a scheduler the setting {unknown[0]!r}; there are: "
            f"{', '.join(sorted(_KEYS))}."
        )
    frequency = given.get("frequency", 1)
    if not isinstance(frequency, int) or frequency < 1:
        raise ValueError(
            f"{who}.configure_optimizers gives a scheduler the frequency {frequency!r}; it is a "
            "whole number of at least 1."
        )
    found = Scheduled(
        given.get("scheduler"), given.get("interval", "epoch"), frequency, given.get("monitor")
    )
    if not hasattr(found.scheduler, "optimizer") or not hasattr(found.scheduler, "step"):
        raise TypeError(
            f"{who}.configure_optimizers returned the scheduler {short(found.scheduler)}, which is "
            "none of torch.optim.lr_scheduler: it has no step() or no optimizer."
        )
    if found.interval not in ("epoch", "step"):
        raise ValueError(
            f"{who}.configure_optimizers gives a scheduler the interval {found.interval!r}; it is "
            "'epoch' or 'step'."
        )
    return found


def _check_plateau(given: Scheduled, who: str, manual: bool) -> None:
    if manual:
        raise ValueError(
            f"{who} steps its optimizers itself, and has ReduceLROnPlateau. Leave that out, "
            'and lower the rates by fl.every(1, fl.reduce_on_plateau("val_loss"), unit="epoch") '
            "among the callbacks."
        )
    if given.monitor is None:
        raise ValueError(
            f"{who}.configure_optimizers returns ReduceLROnPlateau without the metric that it "
            "watches: {'scheduler': ..., 'monitor': 'val_loss'}."
        )
    if given.scheduler.eps > _EPS:
        raise ValueError(
            f"{who}.configure_optimizers returns ReduceLROnPlateau with eps={given.scheduler.eps}, "
            "below which torch leaves out a reduction. Here every reduction counts: leave eps out, "
            "and bound the rates by min_lr."
        )
    shares = floors(given.scheduler)
    if not all([math.isclose(share, shares[0], rel_tol=1e-6) for share in shares]):
        raise ValueError(
            f"{who}.configure_optimizers returns ReduceLROnPlateau whose min_lr is another share "
            f"of the lr in each group ({', '.join([f'{share:.3g}' for share in shares])}), and the "
            "groups are lowered by one factor here. Give min_lr as a list with the same share of "
            "each group's lr; or leave the scheduler out and pass one "
            'fl.reduce_on_plateau("val_loss", rates=..., min_scale=..., name=...) for each group '
            "among the callbacks."
        )


_EPS = 1e-8
"""Torch's own default, of no account at rates that train."""


def floors(plateau: Any) -> list[float]:
    """Of each group with a rate, the share of it that ``min_lr`` keeps."""
    pairs = zip(plateau.min_lrs, plateau.optimizer.param_groups, strict=True)
    return [float(low) / float(group["lr"]) for low, group in pairs if float(group["lr"])]


def is_plateau(scheduled: Scheduled) -> bool:
    """Whether a scheduler watches a metric."""
    return isinstance(scheduled.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)

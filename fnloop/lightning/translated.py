"""Optimizers of torch as optimizers here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fnloop.lightning.configured import Configured, is_plateau
from fnloop.lightning.tables import schedules_of
from fnloop.optim.algorithms.adadelta import adadelta
from fnloop.optim.algorithms.adagrad import adagrad
from fnloop.optim.algorithms.adam import adam, adamw
from fnloop.optim.algorithms.adamax import adamax
from fnloop.optim.algorithms.nadam import nadam
from fnloop.optim.algorithms.radam import radam
from fnloop.optim.algorithms.rmsprop import rmsprop
from fnloop.optim.algorithms.sgd import sgd
from fnloop.optim.base import Optimizer
from fnloop.optim.labels import by_label
from fnloop.optim.torch_bridge import from_torch


class Owned(NamedTuple):
    """An optimizer with the names of the parameters that it trains.

    Attributes:
        optimizer: The optimizer.
        groups: The names in each parameter group, under what its hyperparameters begin with.
        counts: Whether schedulers change its hyperparameters.
    """

    optimizer: Optimizer
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    counts: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of all groups."""
        return tuple([name for _, own in self.groups for name in own])


_MADE_FROM: Mapping[Any, Any] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adamw,
    torch.optim.RMSprop: rmsprop,
    torch.optim.Adagrad: adagrad,
    torch.optim.NAdam: nadam,
    torch.optim.RAdam: radam,
    torch.optim.Adamax: adamax,
    torch.optim.Adadelta: adadelta,
}
"""What computes the same; subclasses, and others, go through `fl.optim.from_torch`."""

_RENAMED = {"initial_accumulator_value": "initial_accumulator"}
_LEFT_OUT = ("params", "foreach", "fused", "capturable", "differentiable")
"""Beside the parameters, how torch computes, not what."""


def optimizer_of(
    given: Configured,
    names: Mapping[int, str],
    per_epoch: int | None = None,
    epochs: int | None = None,
) -> Owned:
    """The optimizer that computes what one of torch does, with its schedulers as schedules.

    Several parameter groups become an `fl.optim.by_label`, in which each has its name (torch takes
    ``{"params": ..., "name": "head"}``) or is ``group0``, ``group1``, ... .

    Args:
        given: The optimizer and its schedulers.
        names: The names of the trained parameters by their ids; others are left out.
        per_epoch, epochs: As for `schedules_of`.

    Raises:
        ValueError: It trains no parameter.
        TypeError: It needs a closure.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> given = Configured(torch.optim.SGD([weight], lr=0.1, momentum=0.9), ())
    >>> found = optimizer_of(given, {id(weight): "weight"})
    >>> found.optimizer, found.names
    (sgd(lr=0.1, momentum=0.9), ('weight',))
    """
    optimizer = given.optimizer
    schedulers = [each for each in given.schedulers if not is_plateau(each)]
    changed: Sequence[dict[str, Any]] = [{} for _ in optimizer.param_groups]
    if schedulers:
        changed = schedules_of(schedulers, per_epoch, epochs)
    parts: dict[str, Optimizer] = {}
    labels: dict[str, str] = {}
    for i, (group, schedules) in enumerate(zip(optimizer.param_groups, changed, strict=True)):
        trained = [names[id(p)] for p in group["params"] if id(p) in names]
        if trained:
            label = group.get("name") or f"group{i}"
            parts[label] = _translated(type(optimizer), group, schedules)
            labels.update(dict.fromkeys(trained, label))
    if not parts:
        raise ValueError(
            f"{type(optimizer).__name__} in configure_optimizers has no parameter of the module "
            "that requires gradients, so it trains nothing."
        )
    whole = by_label(parts, labels) if len(parts) > 1 else next(iter(parts.values()))
    own = {label: tuple([n for n in labels if labels[n] == label]) for label in parts}
    groups = [(f"{label}." if len(parts) > 1 else "", names) for label, names in own.items()]
    return Owned(whole, tuple(groups), bool(schedulers))


def _translated(
    kind: type[torch.optim.Optimizer], group: Mapping[str, Any], schedules: Mapping[str, Any]
) -> Optimizer:
    """One parameter group."""
    known = inspect.signature(kind).parameters  # other keys are the user's, or a scheduler's
    settings = {n: value for n, value in group.items() if n in known and n not in _LEFT_OUT}
    others = {name: value for name, value in schedules.items() if name != "betas"}
    settings.update(others)
    made = _MADE_FROM.get(kind)
    if made is None:
        return from_torch(kind, **{n: value for n, value in settings.items() if n in known})
    if "betas" in settings:
        b1, b2 = settings.pop("betas")
        settings.update(b1=schedules.get("betas", _number(b1)), b2=_number(b2))
    decoupled = settings.pop("decoupled_weight_decay", False)
    if made is adam and decoupled:
        made = adamw
    elif made in (nadam, radam):
        settings["decoupled"] = decoupled
    named = {_RENAMED.get(name, name): _number(value) for name, value in settings.items()}
    return made(**named)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

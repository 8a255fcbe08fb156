"""``scale``: multiply a hyperparameter between two steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.state import State


@explained
def scale(
    state: State,
    hyperparameter: str,
    factor: float | Tensor | None = None,
    to: float | Tensor | None = None,
    name: str = "update",
) -> State:
    """Multiply a reported hyperparameter from the next step on. Returns a new state.

    Args:
        state: A state initialized for a step with `update`.
        hyperparameter: Its reported name: ``"adamw.lr"``, ``"head.adamw.lr"`` under
            `fl.optim.by_label`, or ``"generator/adamw.lr"`` in a part of an `fl.sequence`.
        factor: Multiplies the current multiplier: a number or a 0-d tensor. A learning rate times 0
            freezes the parameters, without weight decay, and their optimizer state.
        to: Sets the multiplier instead: ``to=1.0`` undoes all earlier factors.
        name: Slot of the update.

    Raises:
        KeyError: There is no such slot or hyperparameter.
        TypeError: Both or neither of `factor` and `to` are given, or it is not a number.
        ValueError: It is not finite, or a tensor of another shape than the multiplier.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = scale(step.init(torch.nn.Linear(2, 1)), "sgd.lr", 0.5)
    >>> float(step(state, torch.ones(3, 2))[1]["sgd.lr"])
    0.05
    """
    folder, _, own = hyperparameter.rpartition("/")
    if f"{folder}/{name}" in state.slots:
        name, hyperparameter = f"{folder}/{name}", own
    memory = state[name]
    if hyperparameter not in memory["scale"]:
        known = ", ".join(sorted(memory["scale"])) or "none"
        raise KeyError(
            f"There is no hyperparameter {hyperparameter!r} to scale; there are: {known}."
        )
    if (factor is None) == (to is None):
        raise TypeError("scale takes either a factor or to=, exactly one of the two.")
    old = memory["scale"][hyperparameter]
    number = _number(factor if to is None else to, old, "factor" if to is None else "to")
    new = old * number if to is None else number
    return state.put(name, {**memory, "scale": {**memory["scale"], hyperparameter: new}})


def multipliers(state: State) -> Iterator[tuple[str, str, Tensor]]:
    """The multipliers in `state`, with the two names that `scale` knows each by."""
    for slot, memory in state.slots.items():
        found = memory.get("scale") if isinstance(memory, dict) else None
        if isinstance(found, dict):
            folder, slash, name = slot.rpartition("/")
            for rate, multiplier in found.items():
                yield folder + slash + rate, name, multiplier


def _number(value: Any, old: Tensor, argument: str) -> Tensor:
    """A multiplier like `old`, whose dtype and shape it keeps."""
    if isinstance(value, (int, float)) and not 0 <= value < math.inf:
        raise ValueError(f"scale({argument}=...) takes a finite number of at least 0, got {value}.")
    try:
        number = torch.as_tensor(value, dtype=old.dtype, device=old.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"scale({argument}=...) takes a number or a 0-d tensor, got {short(value)}."
        ) from error
    if number.ndim and number.shape != old.shape:
        raise ValueError(
            f"scale takes a number or a tensor of the multiplier's shape, {short(old)}; got "
            f"{short(number)}."
        )
    return number.expand(old.shape).clone()

"""One learning rate of a step: which it is, and the same step with it in the caller's hands."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fnloop.optim.base import Optimizer
from fnloop.stages.base import Stage
from fnloop.stages.scale import multipliers
from fnloop.stages.sequence import Sequence
from fnloop.trees.nodes import rebuilt
from fnloop.values.state import State


def rate_of(state: State, name: str | None) -> str:
    """The name of the learning rate that is meant, as `fl.scale` knows it.

    Args:
        state: A state with the memory of the step.
        name: What the user gave; None for the only one.

    Raises:
        TypeError: None is given, and there are several.
        ValueError: There is none, or none of that name.
    """
    known = [rate for rate, _, _ in multipliers(state)]
    rates = [rate for rate in known if rate.endswith(".lr")]
    if name is not None and name in known:
        return name
    if name is not None:
        raise ValueError(
            f"find_lr(name={name!r}): this step has no such learning rate; there are: "
            f"{', '.join(rates) or 'none'}."
        )
    if not rates:
        raise ValueError(
            "find_lr finds no learning rate. It tries what an fl.update reports, such as "
            "fl.update(fl.optim.adamw(1e-3)); a step that is a bare function has none."
        )
    if len(rates) > 1:
        raise TypeError(
            f"This step has {len(rates)} learning rates ({', '.join(rates)}). Say which to try, "
            f"the others stay as they are: fl.tuning.find_lr(..., name={rates[0]!r})."
        )
    return rates[0]


def with_free_rate(step: Any, rate: str) -> tuple[Any, int]:
    """The step with its learning rate `rate` set to one, so that the multiplier alone counts.

    Returns:
        The step; and n, if that learning rate is used at every n-th call only (in a part of
        `fl.sequence`), else 1.
    """
    folder, slash, own = rate.partition("/")
    if isinstance(step, Sequence) and slash:
        i = step.names.index(folder)
        part, every = with_free_rate(step.parts[i], own)
        parts = (*step.parts[:i], part, *step.parts[i + 1 :])
        return rebuilt(step, parts=parts), every * dict(step.every).get(folder, 1)
    own_way: Any = getattr(step, "with_values", None)  # a step that has several optimizers
    if own_way is not None:
        return own_way({rate: 1.0}), 1
    every, changes = 1, dict[str, Any]()
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Optimizer):
            changes[field.name] = value.with_values({rate: 1.0})
        elif isinstance(value, Stage):
            changes[field.name], every = with_free_rate(value, rate)
    return rebuilt(step, **changes), every


def with_rate(state: State, rate: str, value: float) -> State:
    """The state with `value` as the multiplier of `rate`: in float64, so that it is exact."""
    folder, slash, own = rate.rpartition("/")
    slot, old = next((folder + slash + s, m) for r, s, m in multipliers(state) if r == rate)
    number = torch.tensor(value, dtype=torch.float64, device=old.device)
    memory = state[slot]
    return state.put(slot, {**memory, "scale": {**memory["scale"], own: number}})

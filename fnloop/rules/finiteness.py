"""``nonfinite``: a rule for metrics that are nan or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.stages.rule import Rule, number, skipped, verdict
from fnloop.trees.nodes import tree
from fnloop.values.choice import either, invert, select
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.state import State


@tree
class nonfinite(Rule):
    """A rule for `fl.guard`: a step is bad if `monitor` is nan or infinite.

    `fl.update` already skips a step whose gradient is not finite. This rule also finds a loss that
    is not finite while its gradient is. Skipped steps count as bad too (also those of weight zero),
    so with ``then="rewind"`` and a `patience` above 1 the run escapes from parameters for which
    every step is skipped.

    Args:
        monitor: Name of the metric.
        patience: The verdict is bad from the `patience`-th such step in a row; earlier ones pass.
        name: Name of the slot. With a patience of 1 there is no slot.

    Raises:
        ValueError: `patience` is below 1; or, at the call, the metric is not a single number.

    >>> import torch, fnloop as fl
    >>> rule = nonfinite("loss")
    >>> state = fl.grad(lambda m, x: m(x).mean()).init(torch.nn.Linear(1, 1))
    >>> [bool(rule(state, {"loss": fl.Mean(x, 1)})[1]["bad"].value()) for x in (1.0, torch.inf)]
    [False, True]
    """

    label: ClassVar[str] = "nonfinite"
    monitor: str = "loss"
    patience: int = 1
    name: str = "nonfinite"

    def __post_init__(self) -> None:
        patience = as_count(self.patience, "nonfinite(patience=...)", 1)
        object.__setattr__(self, "patience", patience)
        super().__post_init__()

    @property
    def slot(self) -> str | None:
        return self.name if self.patience > 1 else None

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"streak": torch.zeros((), dtype=torch.int64, device=state.step.device)}

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        found = self.found(x)
        if found is None:
            return state, x
        value = number(found)
        bad = either(invert(value - value == 0), skipped(x))  # inf - inf is nan
        if self.patience > 1:
            streak = state[self.name]["streak"] + 1
            streak = select(bad, streak, torch.zeros_like(streak))
            bad = look(streak >= self.patience)
            state = state.put(self.name, {**state[self.name], "streak": streak})
        return state, {**x, **verdict(bad, state)}

"""Rules, which say whether a step was a bad one: what they share, and how a guard takes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch.tracing import tracing
from fnloop.stages.base import Callback, Kind, Stage
from fnloop.stages.lift import stage
from fnloop.stages.select import Flag, look
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.merging import find
from fnloop.values.metrics import Sum
from fnloop.values.state import State


class Rule(Callback):
    """A callback that looks at one metric, and tells its verdict as the metric ``"bad"``."""

    monitor: str

    def needs(self) -> tuple[str, ...]:
        return (self.monitor,)

    def adds(self, state: State, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"bad": Sum(0.0)}

    def found(self, metrics: Mapping[str, Any]) -> Any:
        """What it looks at; None where that is not there."""
        found = find(metrics, self.monitor)
        if isinstance(found, Mapping) or (isinstance(found, Tensor) and found.ndim):
            raise ValueError(
                f"{self.describe()} watches one number, and the metric {self.monitor!r} has "
                f"several: {short(found)}."
            )
        return found


@tree
class RulePart(Stage):
    """A rule as a part of a step: its memory is made before there are metrics."""

    kind: ClassVar[Kind] = "callback"
    inner: Any

    @property
    def slot(self) -> str | None:
        return self.inner.slot

    @property
    def spelling(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.spelling

    def stages(self) -> Iterator[Stage]:
        yield self

    def memory(self, state: State) -> Any:
        try:
            return self.inner.memory(state, {})
        except KeyError as error:
            error.add_note(
                f"fnloop: {self.describe()} is the rule of a guard, and makes its memory before "
                "the first step, when there are no metrics."
            )
            raise

    def describe(self) -> str:
        return self.inner.describe()

    def lines(self) -> list[str]:
        return []  # the guard's line shows it


def as_rule(rule: Any) -> Callback:
    """`rule` as a callback; a bare function is lifted."""
    if isinstance(rule, Callback):
        return rule
    waits = isinstance(rule, functools.partial) and isinstance(rule.func, type)  # fl.ema(0.9)
    if callable(rule) and not waits and not isinstance(rule, (Stage, type)):
        return stage(rule, "callback")
    got = rule.describe() if isinstance(rule, Stage) else short(rule)
    raise TypeError(
        'guard takes a rule, which is a callback such as fl.spike("loss"), or a function '
        f"(state, metrics) -> (state, metrics); it was given {got}."
        + (f" Write {got}(...)." if isinstance(rule, type) else "")
    )


def number(value: Any, device: torch.device) -> Any:
    """A plain number on the CPU, where looking costs nothing; else float64[]."""
    if tracing() or device.type != "cpu":
        return torch.as_tensor(value, dtype=torch.float64, device=device)
    return value.item() if isinstance(value, Tensor) else float(value)


def skipped(metrics: Mapping[str, Any], device: torch.device) -> Flag:
    """Whether the step was skipped; its metrics are then blank."""
    return look(metrics["skipped"].value() if "skipped" in metrics else False, device)

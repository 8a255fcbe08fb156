"""Rules decide whether a step was bad: their base class, and how a guard uses them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fnloop.stages.base import Kind, Stage
from fnloop.stages.callback import Callback
from fnloop.stages.lift import stage
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.choice import Flag
from fnloop.values.looking import look
from fnloop.values.merging import find
from fnloop.values.metrics import Sum, as_tensor
from fnloop.values.monitored import one_number
from fnloop.values.state import State


class Rule(Callback):
    """A callback that reads one metric and reports its verdict as the metric ``"bad"``."""

    monitor: str

    def needs(self) -> tuple[str, ...]:
        return (self.monitor,)

    def adds(self, state: State, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"bad": Sum(as_tensor(0, state.step.device))}

    def found(self, metrics: Mapping[str, Any]) -> Any:
        """The value of the monitored metric; None if it is missing.

        Raises:
            ValueError: It is not one number.
        """
        found = find(metrics, self.monitor)
        return None if found is None else one_number(found, self.monitor, self.describe())


@tree
class RulePart(Stage):
    """Adapts a rule to a part of a training step; its memory is made before the first metrics."""

    kind: ClassVar[Kind] = "callback"
    inner: Any

    def taken_back(self, memory: Any) -> Any:
        return {}  # a rule keeps its memory of bad steps

    @property
    def slot(self) -> str | None:
        return self.inner.slot

    @property
    def label(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.label

    def stages(self) -> Iterator[Stage]:
        yield self

    def init_state(self, state: State) -> Any:
        try:
            return self.inner.init_state(state, {})
        except KeyError as error:
            error.add_note(
                f"fnloop: {self.describe()} is the rule of a guard, so its init_state runs before "
                "the first step, without metrics."
            )
            raise

    def describe(self) -> str:
        return self.inner.describe()

    def lines(self) -> list[str]:
        return []  # it is part of the guard's line


def as_rule(rule: Any) -> Callback:
    """Convert a rule to a callback; a plain function is wrapped.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(rule, Callback):
        return rule
    unfinished = isinstance(rule, functools.partial) and isinstance(rule.func, type)  # fl.ema(0.9)
    if callable(rule) and not unfinished and not isinstance(rule, (Stage, type, nn.Module)):
        return stage(rule, "callback")
    got = rule.describe() if isinstance(rule, Stage) else short(rule)
    raise TypeError(
        'guard takes a rule, which is a callback such as fl.rules.spike("loss"), or a function '
        f"(state, metrics) -> (state, metrics); it was given {got}."
        + (f" Write {got}(...)." if isinstance(rule, type) else "")
    )


def number(value: Any) -> Any:
    """A Python float where `look` can read the value, else float64[]."""
    found = look(value)
    return found.double() if isinstance(found, Tensor) else float(found)


def skipped(metrics: Mapping[str, Any]) -> Flag:
    """Whether the step was skipped; its metrics then have weight zero."""
    return truth(metrics["skipped"].value() if "skipped" in metrics else False)


def truth(value: Any) -> Flag:
    """Whether a number is not zero."""
    found = look(value)
    return found != 0 if isinstance(found, Tensor) else bool(found)


def verdict(bad: Flag, state: State) -> dict[str, Any]:
    """The metric ``"bad"`` that a rule adds: a `Sum` of 0 or 1, int64[]."""
    return {"bad": Sum(as_tensor(bad, state.step.device))}

"""``early_stopping``: stop when a metric has stopped improving."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from fnloop._torch.tracing import opaque
from fnloop.loop.monitoring import Monitoring
from fnloop.names.arguments import bounded
from fnloop.trees.nodes import rebuilt, tree
from fnloop.values.choice import select
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Stop, stop
from fnloop.values.monitored import check_mode
from fnloop.values.rhythm import Pace
from fnloop.values.stacked import ACTIVE, SLOT, frozen, members_of
from fnloop.values.state import State


@tree
class early_stopping(Monitoring):
    """Ask for a stop when `monitor` has not improved for `patience` checks.

    A check happens whenever the metric is reported: after each validation. As in PyTorch
    Lightning's EarlyStopping, the first rule that applies decides: not finite; better than
    `stopping_threshold`; worse than `divergence_threshold`; improved by MORE than `min_delta` (the
    count of checks restarts); else one more check without improvement, and a stop at the
    `patience`-th in a row.

    The best value and the count of checks are in the state, so a resumed run goes on counting.

    Each member of a population (`fl.ensemble`, `fl.sweep`) is judged by its own values. One that is
    to stop is frozen: it keeps its bits. The run stops with the last. Before the ``min_epochs`` and
    ``min_steps`` of the run none is frozen: a member goes on there, as a run alone does.

    Args:
        monitor: Name of the metric, such as ``"val/loss"``.
        patience: Checks without improvement that end the run; 0 counts as 1.
        min_delta: An improvement is larger than this, at least 0.
        mode: ``"min"`` (lower is better) or ``"max"``.
        check_finite: Stop when the metric is nan or infinite.
        stopping_threshold: Stop when the metric is better than this.
        divergence_threshold: Stop when the metric is worse than this.
        name: Of the slot.

    >>> import torch, fnloop as fl
    >>> callback = early_stopping("val/loss", patience=2)
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(torch.nn.Linear(1, 1))
    >>> state = callback.init(state, {"val/loss": fl.Last(1.0)})
    >>> for value in (1.0, 1.5, 1.2):
    ...     state, metrics = callback(state, {"val/loss": fl.Last(value)})
    >>> bool(metrics["early_stopping"]), metrics["early_stopping"].reason
    (True, 'val/loss has not improved on 1 for 2 checks')
    """

    label: ClassVar[str] = "early_stopping"
    monitor: str
    patience: int = 3
    min_delta: Annotated[float, bounded(0)] = 0.0
    mode: str = "min"
    check_finite: bool = True
    stopping_threshold: Annotated[float, bounded()] | None = None
    divergence_threshold: Annotated[float, bounded()] | None = None
    name: str = "early_stopping"
    pace: Pace = dataclasses.field(  # the run's
        default=Pace(), init=False, repr=False, metadata={"static": True}
    )

    def __post_init__(self) -> None:
        check_mode(self.mode, self.monitor, "early_stopping")
        patience = as_count(self.patience, "early_stopping(patience=...)")
        object.__setattr__(self, "patience", patience)
        super().__post_init__()

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Tensor]:
        none = torch.zeros_like(state.step)  # of a population, one for each member
        worst = torch.full_like(none, self._sign * float("inf"), dtype=torch.float64)
        return {
            "best": worst,
            "waited": none,
            "latest": worst.clone(),
            "checks": none.clone(),
            "checked_at": none.clone(),
        }

    def along(self, pace: Pace) -> Self:
        return rebuilt(self, pace=pace)

    def stopped(self, state: State) -> str | None:
        memory = state.slots.get(self.name)
        if memory and SLOT in state.slots:
            return None if bool(state[SLOT][ACTIVE].any()) else self._all_stopped(state)
        if not memory or memory["waited"].ndim or not int(memory["checks"]):
            return None
        if int(memory["checked_at"]) != Cursor.of(state.cursor).count:
            return None  # the run went on from there: it was held back
        latest, best, waited = memory["latest"], memory["best"], memory["waited"]
        rules = self._rules(latest)
        if not any(map(bool, rules)) and int(waited) < max(1, self.patience):
            return None
        return self._reason(float(latest), float(best), int(waited), *map(bool, rules))

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        found = self.found(state, x)
        if found is None:
            return state, x
        best, waited = state[self.name]["best"], state[self.name]["waited"]
        value = torch.as_tensor(found, dtype=torch.float64, device=best.device)
        not_finite, reached, diverged = self._rules(value)
        sign = self._sign
        ends = not_finite | reached | diverged
        improved = ~ends & (sign * value + self.min_delta < sign * best)
        new_waited = torch.where(
            ends, waited, torch.where(improved, torch.zeros_like(waited), waited + 1)
        )
        exhausted = ~ends & ~improved & (new_waited >= self.patience)
        memory = {
            **state[self.name],
            "best": torch.where(improved, value, best),
            "waited": new_waited,
            "latest": value,
            "checks": state[self.name]["checks"] + 1,
            "checked_at": torch.zeros_like(waited) + Cursor.of(state.cursor).count,
        }
        if SLOT in state.slots:
            return self._by_member(state, x, memory, ends | exhausted)
        facts = (value, best, new_waited, not_finite, reached, diverged)
        asked = self._asked(ends | exhausted, *facts)
        return state.put(self.name, memory), {**x, self.name: asked}

    def _by_member(
        self, state: State, x: Mapping[str, Any], memory: dict[str, Tensor], ends: Tensor
    ) -> tuple[State, Mapping[str, Any]]:
        """Each member of a population stops by itself, and is frozen; the run, with the last."""
        active = state[SLOT][ACTIVE]
        state = state.put(self.name, select(active, memory, state[self.name]))
        if not self.pace.too_early(Cursor.of(state.cursor)):
            state = frozen(state, ends)
        asked = stop(~state[SLOT][ACTIVE].any(), self._all_stopped(state))
        return state, {**x, self.name: asked}

    def _all_stopped(self, state: State) -> str:
        return f"{self.monitor} has stopped improving in all {members_of(state)} members"

    @property
    def _sign(self) -> float:
        """Multiplied by it, lower is better in both modes."""
        return 1.0 if self.mode == "min" else -1.0

    def _rules(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a value is not finite, better than one threshold, worse than the other."""
        sign, nothing = self._sign, torch.zeros_like(value, dtype=torch.bool)
        better, worse = self.stopping_threshold, self.divergence_threshold
        return (
            ~value.isfinite() if self.check_finite else nothing,
            nothing if better is None else sign * value < sign * better,
            nothing if worse is None else sign * value > sign * worse,
        )

    def _asked(self, when: Tensor, value: Tensor, *others: Tensor) -> Stop:
        if opaque() or value.ndim:
            return stop(when, f"{self.monitor} has stopped improving")
        # One transfer for all values: each transfer waits for the device.
        facts = [fact.to(torch.float64) for fact in (when, value, *others)]
        asked, number, best, waited, *rules = torch.stack(facts).tolist()
        return stop(bool(asked), self._reason(number, best, int(waited), *map(bool, rules)))

    def _reason(
        self,
        value: float,
        best: float,
        waited: int,
        not_finite: bool,
        reached: bool,
        diverged: bool,
    ) -> str:
        now = f"{self.monitor} is {value:.4g}"
        if not_finite:
            return f"{now}, which is not finite"
        if reached:
            return f"{now}, better than the threshold {self.stopping_threshold:.4g}"
        if diverged:
            return f"{now}, worse than the threshold {self.divergence_threshold:.4g}"
        checks = f"{waited} check{'s' if waited != 1 else ''}"
        return f"{self.monitor} has not improved on {best:.4g} for {checks}"

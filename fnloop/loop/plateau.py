"""``reduce_on_plateau``: lower learning rates when a metric has stopped improving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from fnloop.loop.monitoring import Monitoring
from fnloop.names.arguments import bounded
from fnloop.stages.scale import multipliers, scale
from fnloop.trees.nodes import tree
from fnloop.values.choice import select
from fnloop.values.counts import as_count
from fnloop.values.metrics import Sum
from fnloop.values.monitored import check_mode
from fnloop.values.stacked import ACTIVE, SLOT
from fnloop.values.state import State


@tree
class reduce_on_plateau(Monitoring):
    """Multiply learning rates by `factor` when `monitor` has not improved for `patience` checks.

    A check happens whenever the metric is reported: after each validation. The rules and defaults
    are those of ``torch.optim.lr_scheduler.ReduceLROnPlateau``: the rates are lowered at the check
    after `patience` bad ones in a row, and during `cooldown` checks after that none counts as bad.
    What is lowered is the multiplier of `fl.scale`, so that a schedule goes on, scaled.

    Best value and counts are in the state, so a resumed run goes on counting. The metric
    ``"reduce_on_plateau"`` is one at a check that lowers the rates, else zero.

    Args:
        monitor: Name of the metric, such as ``"val/loss"``.
        factor: Multiplies the rates, between 0 and 1.
        patience: Checks without improvement that are borne.
        threshold: An improvement is larger than this.
        threshold_mode: ``"rel"``: than this share of the best value; or ``"abs"``.
        cooldown: Checks after a reduction at which nothing is counted.
        min_scale: The multipliers are not lowered below this; 0.01 for a hundredth of the rates.
        mode: ``"min"`` (lower is better) or ``"max"``.
        rates: Names of the hyperparameters, as in `fl.scale`; default every learning rate.
        name: Of the slot and of the metric.

    Raises:
        ValueError: A setting is out of range; or, at the start of a run, there is no hyperparameter
            of a name in `rates`.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(1, 1))
    >>> callback = reduce_on_plateau("val/loss", patience=1)
    >>> state = callback.init(state, {"val/loss": fl.Last(1.0)})
    >>> for value in (1.0, 1.5, 1.2):
    ...     state, metrics = callback(state, {"val/loss": fl.Last(value)})
    >>> _, reported = step(state, torch.ones(1, 1))
    >>> float(metrics["reduce_on_plateau"]), f"{reported['sgd.lr']:.3f}"
    (1.0, '0.010')
    """

    label: ClassVar[str] = "reduce_on_plateau"
    monitor: str
    factor: Annotated[float, bounded(0, 1, above=True, below=True)] = 0.1
    patience: int = 10
    threshold: Annotated[float, bounded(0)] = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_scale: Annotated[float, bounded(0)] = 0.0
    mode: str = "min"
    rates: str | tuple[str, ...] = ()
    name: str = "reduce_on_plateau"

    def __post_init__(self) -> None:
        check_mode(self.mode, self.monitor, "reduce_on_plateau")
        for field in ("patience", "cooldown"):
            count = as_count(getattr(self, field), f"reduce_on_plateau({field}=...)")
            object.__setattr__(self, field, count)
        rates: Any = (self.rates,) if isinstance(self.rates, str) else tuple(self.rates)
        object.__setattr__(self, "rates", rates)
        super().__post_init__()

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Tensor]:
        found = [rate for rate, _, _ in self._rates(state)]
        missing = [rate for rate in self.rates if rate not in found]
        if missing or not found:
            known = ", ".join([rate for rate, _, _ in multipliers(state)]) or "none"
            what = missing[0] if missing else "learning rate"
            raise ValueError(
                f"{self.describe()} finds no {what} to lower. It lowers what an fl.update reports; "
                f"there are: {known}."
            )
        worst = float("inf") if self.mode == "min" else -float("inf")
        zero = torch.zeros_like(state.step)  # of a population, one for each member
        return {
            "best": torch.full_like(zero, worst, dtype=torch.float64),
            "bad": zero,
            "cooldown": zero.clone(),
        }

    def adds(self, state: State, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return {self.name: Sum(torch.zeros_like(state.step))}

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        found = self.found(state, x)
        if found is None:
            return state, x
        best, bad, cooldown = (state[self.name][n] for n in ("best", "bad", "cooldown"))
        value = torch.as_tensor(found, dtype=torch.float64, device=best.device)
        better = self._is_better(value, best)
        bad = torch.where(better | (cooldown > 0), 0, bad + 1)
        active = state[SLOT][ACTIVE] if SLOT in state.slots else True
        reduces = active & (bad > self.patience)
        memory = {
            "best": torch.where(better, value, best),
            "bad": torch.where(reduces, 0, bad),
            "cooldown": torch.where(reduces, self.cooldown, (cooldown - 1).clamp(min=0)),
        }
        for rate, slot, old in self._rates(state):
            lower = torch.clamp(old.double() * self.factor, min=self.min_scale).to(old.dtype)
            new = torch.where(reduces, torch.minimum(lower, old), old)
            state = scale(state, rate, to=new, name=slot)
        memory = select(active, memory, state[self.name])
        return state.put(self.name, memory), {**x, self.name: Sum(reduces.to(torch.int64))}

    def _is_better(self, value: Tensor, best: Tensor) -> Tensor:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "rel":
            return sign * value < sign * best * (1 - sign * self.threshold)
        return sign * value < sign * best - self.threshold

    def _rates(self, state: State) -> Iterator[tuple[str, str, Tensor]]:
        for rate, slot, multiplier in multipliers(state):
            if rate in self.rates or (not self.rates and rate.endswith(".lr")):
                yield rate, slot, multiplier

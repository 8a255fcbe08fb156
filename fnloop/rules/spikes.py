"""``spike``: a rule for metrics far above their running mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.arguments import bounded
from fnloop.stages.rule import Rule, number, skipped, verdict
from fnloop.trees.nodes import tree
from fnloop.values.choice import Flag, all_of, both, either, invert, select
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.state import State


@tree
class spike(Rule):
    """A rule for `fl.guard`: a step is bad if `monitor` is far above its running mean.

    It is bad if it is more than `sigmas` standard deviations above the mean, or not finite (the
    z-score test of ZClip, Kumar et al., 2025, which applies it to the gradient norm). Mean and
    variance are exponentially weighted in float64: each value weighs ``1 - 1 / window`` times as
    much as the next (recursion of West, 1979; unbiased from the start). Bad values do not enter
    them. Skipped steps neither enter them nor are judged.

    Args:
        monitor: Name of the metric; lower is better.
        sigmas: Largest accepted distance above the mean, in standard deviations; above 0.
        window: Approximate number of values in the mean; at least 2.
        warmup: Number of values before the first verdict; at least 2. Non-finite values are bad
            even then.
        patience: After this many too high values in a row, mean and variance restart, with a new
            warm-up: that is a new level, not a spike. Non-finite values do not count.
        name: Name of the slot.

    Raises:
        ValueError: An argument is out of range; or, at the call, the metric is not a single number.

    >>> import torch, fnloop as fl
    >>> rule = spike("loss", warmup=4)
    >>> state = fl.grad(lambda m, x: m(x).mean()).init(torch.nn.Linear(1, 1))
    >>> state, verdicts = rule.init(state, {}), []
    >>> for value in (1.1, 0.9, 1.0, 1.2, 0.8, 9.0, 0.9):
    ...     state, metrics = rule(state, {"loss": fl.Mean(value, 1)})
    ...     verdicts.append(int(metrics["bad"].value()))
    >>> verdicts
    [0, 0, 0, 0, 0, 1, 0]
    """

    label: ClassVar[str] = "spike"
    monitor: str = "loss"
    sigmas: Annotated[float, bounded(0, above=True)] = 6.0
    window: int = 100
    warmup: int = 25
    patience: int = 10
    name: str = "spike"

    def __post_init__(self) -> None:
        for field, least in (("window", 2), ("warmup", 2), ("patience", 1)):
            count = as_count(getattr(self, field), f"spike({field}=...)", least)
            object.__setattr__(self, field, count)
        super().__post_init__()

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Tensor]:
        device = state.step.device
        return {name: torch.zeros((), dtype=kind, device=device) for name, kind in _KINDS.items()}

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        found = self.found(x)
        if found is None:
            return state, x
        own = {name: look(tensor) for name, tensor in state[self.name].items()}
        value, judged = number(found), invert(skipped(x))
        finite = value - value == 0  # inf - inf is nan
        limit = own["mean"] + self.sigmas * own["variance"] ** 0.5
        high = all_of(judged, finite, own["count"] >= self.warmup, value > limit)
        counts = all_of(judged, finite, invert(high))
        memory = self._remember(own, value, counts, high)
        memory = {name: _tensor(n, _KINDS[name]) for name, n in memory.items()}
        bad = both(judged, either(high, invert(finite)))
        return state.put(self.name, memory), {**x, **verdict(bad, state)}

    def _remember(
        self, own: dict[str, Any], value: Any, counts: Flag, high: Flag
    ) -> dict[str, Any]:
        weight = own["weight"] * (1 - 1 / self.window) + 1
        off, share = value - own["mean"], 1 / weight
        taken = {
            "mean": own["mean"] + share * off,
            "variance": (1 - share) * (own["variance"] + share * off * off),
            "weight": weight,
            "count": own["count"] + 1,
            "streak": 0 * own["streak"],
        }
        left = {**own, "streak": own["streak"] + high}
        anew = left["streak"] >= self.patience
        left = select(anew, {name: 0 * n for name, n in left.items()}, left)
        return select(counts, taken, left)


_KINDS = {
    "mean": torch.float64,
    "variance": torch.float64,
    "weight": torch.float64,
    "count": torch.int64,
    "streak": torch.int64,
}


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.scalar_tensor(value, dtype=dtype, device="cpu")

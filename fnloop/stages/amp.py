"""``amp``: automatic mixed precision, with the loss scale in the state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.base import GradStage, Kind
from fnloop.trees.nodes import tree
from fnloop.values.counts import as_count
from fnloop.values.grads import Grads
from fnloop.values.metrics import Last, exact
from fnloop.values.state import State

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLEST, _LARGEST = 2.0**-126, 2.0**126


@tree
class Amp(GradStage):
    """The stage that `amp` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "amp"
    inner: Any
    precision: str
    init_scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    min_scale: float = 1.0
    name: str = "amp"

    def __post_init__(self) -> None:
        if self.precision not in _DTYPES:
            raise ValueError(f'amp takes "bf16" or "fp16", got {self.precision!r}.')
        for field in ("init_scale", "min_scale"):
            value = getattr(self, field)
            if isinstance(value, (int, float)) and not _SMALLEST <= value <= _LARGEST:
                raise ValueError(
                    f"amp({field}=...) takes a number from {_SMALLEST:.3g} to {_LARGEST:.3g}, so "
                    f"that its inverse is a normal float32, got {value}. Usual: init_scale=2.0**16."
                )
        if isinstance(self.growth, (int, float)) and not 1 <= self.growth < math.inf:
            raise ValueError(f"amp(growth=...) takes a finite number from 1 on, got {self.growth}.")
        if isinstance(self.backoff, (int, float)) and not 0 < self.backoff < 1:
            raise ValueError(f"amp(backoff=...) takes a number from 0 to 1, got {self.backoff}.")
        object.__setattr__(self, "interval", as_count(self.interval, "amp(interval=...)", 1))
        super().__post_init__()

    def taken_back(self, memory: Any) -> Any:
        return {}  # keep the reduced loss scale: restoring it would repeat the overflow

    @property
    def slot(self) -> str | None:
        return self.name if self.precision == "fp16" else None

    def init_state(self, state: State) -> dict[str, Tensor]:
        device = state.step.device
        return {
            "scale": torch.tensor(float(self.init_scale), dtype=torch.float32, device=device),
            "good": torch.zeros((), dtype=torch.int64, device=device),
        }

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        outer, dtype = state.context, _DTYPES[self.precision]
        if self.slot is None:
            after, grads = self.inner(state.within(autocast=dtype), x)
            return after.replace(context=outer), grads
        scale, good = state[self.name]["scale"], state[self.name]["good"] + 1
        after, grads = self.inner(state.within(autocast=dtype, scale=scale), x)
        finite, grows = grads.finite & grads.mean.all_finite(), good >= self.interval
        grown = torch.where(grows, (scale * self.growth).to(scale.dtype), scale)
        grown = torch.where(grown <= _LARGEST, grown, scale)
        shrunk = (scale * self.backoff).clamp(min=self.min_scale).to(scale.dtype)
        memory = {
            **state[self.name],
            "scale": torch.where(finite, grown, torch.minimum(shrunk, scale)),
            "good": torch.where(finite & ~grows, good, torch.zeros_like(good)),
        }
        metrics = {**grads.metrics, f"{self.name}.scale": Last(exact(scale))}
        after = after.replace(context=outer).put(self.name, memory)
        return after, grads.replace(finite=finite, metrics=metrics)


@explained
def amp(
    precision: Literal["bf16", "fp16"],
    init_scale: float = 2.0**16,
    growth: float = 2.0,
    backoff: float = 0.5,
    interval: int = 2000,
    min_scale: float = 1.0,
    name: str = "amp",
) -> Callable[[GradStage], Amp]:
    """Run the model under autocast; parameters, gradients and optimizer state stay float32.

    Applies to training only: `fl.evaluate`, `fl.validate` and `fl.predict` run without autocast.

    ``"fp16"`` adds loss scaling, so that small gradients do not underflow. The scale is kept in
    ``state["amp"]`` and reported as ``"amp.scale"``. A non-finite gradient skips the step and
    multiplies the scale by `backoff`; `interval` finite steps in a row multiply it by `growth`
    (Micikevicius et al., 2018; the rule and defaults of ``torch.amp.GradScaler``).

    Args:
        precision: ``"bf16"`` (without loss scaling) or ``"fp16"``.
        init_scale: The first loss scale.
        growth: Factor after `interval` finite steps in a row, at least 1.
        backoff: Factor after a non-finite step, between 0 and 1.
        interval: Finite steps in a row before the scale grows, at least 1.
        min_scale: Lower bound of the scale. A run that stays at this bound has another problem
            than overflow.
        name: Name of the slot.

    Raises:
        TypeError: `interval` is not an integer.
        ValueError: `precision` is unknown, a scale is outside ``[2**-126, 2**126]``, or another
            number is out of range.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, amp("fp16"), fl.update(fl.optim.sgd(0.1)))
    >>> float(step.init(torch.nn.Linear(2, 1))["amp"]["scale"])
    65536.0
    """
    return functools.partial(
        Amp,
        precision=precision,
        init_scale=init_scale,
        growth=growth,
        backoff=backoff,
        interval=interval,
        min_scale=min_scale,
        name=name,
    )

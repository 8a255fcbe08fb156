"""``amp``: automatic mixed precision, with the loss scale in the state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fnloop.stages.base import GradStage, Kind
from fnloop.trees.nodes import tree
from fnloop.values.grads import Grads
from fnloop.values.metrics import Last
from fnloop.values.state import State

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@tree
class Amp(GradStage):
    """The stage that `amp` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    spelling: ClassVar[str] = "amp"
    inner: Any
    precision: str
    init_scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    name: str = "amp"

    def __post_init__(self) -> None:
        if self.precision not in _DTYPES:
            raise ValueError(f'amp takes "bf16" or "fp16", got {self.precision!r}.')
        super().__post_init__()

    @property
    def slot(self) -> str | None:
        return self.name if self.precision == "fp16" else None

    def memory(self, state: State) -> dict[str, Tensor]:
        device = state.key.device
        return {
            "scale": torch.tensor(float(self.init_scale), device=device),
            "good": torch.zeros((), dtype=torch.int64, device=device),
        }

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        outer = state.context
        context = {**outer, "autocast": _DTYPES[self.precision]}
        if self.slot is None:
            state, grads = self.inner(state.replace(context=context), x)
            return state.replace(context=outer), grads
        scale, good = state[self.name]["scale"], state[self.name]["good"] + 1
        state, grads = self.inner(state.replace(context={**context, "scale": scale}), x)
        grows = good >= self.interval
        grown = torch.where(grows, scale * self.growth, scale)
        grown = torch.where(grown.isfinite(), grown, scale)
        memory = {
            **state[self.name],
            "scale": torch.where(grads.finite, grown, scale * self.backoff),
            "good": torch.where(grads.finite & ~grows, good, torch.zeros_like(good)),
        }
        metrics = {**grads.metrics, f"{self.name}.scale": Last(scale)}
        grads = Grads(grads.total, grads.weight, grads.finite, metrics)
        return state.replace(context=outer).put(self.name, memory), grads


def amp(
    precision: Literal["bf16", "fp16"],
    init_scale: float = 2.0**16,
    growth: float = 2.0,
    backoff: float = 0.5,
    interval: int = 2000,
    name: str = "amp",
) -> Callable[[GradStage], Amp]:
    """Run the model under autocast; parameters, gradients and optimizer stay float32.

    This is for training: `fl.evaluate`, `fl.validate` and `fl.predict` run without autocast.

    For ``"fp16"`` the loss is multiplied by a scale, kept in ``state["amp"]``, so that small
    gradients do not vanish: a non-finite gradient skips the step and multiplies the scale by
    `backoff`, `interval` finite ones in a row multiply it by `growth` (Micikevicius et al., 2018;
    the rule and defaults of ``torch.amp.GradScaler``).

    Args:
        precision: ``"bf16"`` (needs no scale) or ``"fp16"``.
        init_scale: The first loss scale.
        growth: Factor after `interval` finite steps in a row.
        backoff: Factor after a non-finite one.
        interval: Steps.
        name: Of the slot.

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
        name=name,
    )

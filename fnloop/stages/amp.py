"""``amp``: the precision of a step, with the loss scale in the state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from fnloop._torch.tracing import recording
from fnloop.names.arguments import bounded
from fnloop.names.keywords import explained
from fnloop.stages.base import GradStage, Kind, Stage
from fnloop.stages.in_precision import InPrecision
from fnloop.stages.module_precisions import as_modules
from fnloop.stages.precisions import PRECISIONS, Precision, cast, check_modules
from fnloop.trees.nodes import static, tree
from fnloop.values.counts import as_count
from fnloop.values.grads import Grads
from fnloop.values.metrics import Last, exact
from fnloop.values.state import State
from fnloop.values.tensors import Tensors

_LARGEST = 2.0**126
_Scale = Annotated[float, bounded(1 / _LARGEST, _LARGEST)]
"""Whose inverse is a normal float32."""


@tree
class Amp(GradStage):
    """The stage that `amp` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "amp"
    inner: Any
    precision: str
    modules: Any = static(default=None)
    init_scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    min_scale: float = 1.0
    name: str = "amp"

    def taken_back(self, memory: Any) -> Any:
        return {}  # keep the reduced loss scale: restoring it would repeat the overflow

    @property
    def slot(self) -> str | None:
        return self.name if "fp16" in (self.precision, *(self.modules or {}).values()) else None

    def prepared(self, state: State) -> State:
        dtype = PRECISIONS[self.precision].stored
        if dtype is None:
            return state
        params, buffers = (_stored(own, dtype) for own in (state.params, state.buffers))
        return state.replace(params=params, buffers=buffers)

    def init_state(self, state: State) -> dict[str, Tensor]:
        device = state.step.device
        return {
            "scale": torch.tensor(float(self.init_scale), dtype=torch.float32, device=device),
            "good": torch.zeros((), dtype=torch.int64, device=device),
        }

    def evaluating(self, function: Any) -> Any:
        if PRECISIONS[self.precision].stored is None:
            return function
        return InPrecision(function, self.precision)

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        outer, own = state.context, PRECISIONS[self.precision]
        if own.stored is not None:
            _check_stored(self, state.params, own.stored)
            x = cast(x, own.stored)
        inside = state.within(autocast=own.autocast, modules=self.modules)
        if self.slot is None:
            after, grads = self._inner(own, inside, x)
            return after.replace(context=outer), grads
        scale, good = state[self.name]["scale"], state[self.name]["good"] + 1
        after, grads = self._inner(own, inside.within(scale=scale), x)
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

    def _inner(self, own: Precision, state: State, x: Any) -> tuple[State, Grads]:
        if own.rounded and recording() is not None:
            recording().rounded = True  # the setting counts where products run
        with own.running():
            return self.inner(state, x)


class Policy(functools.partial[Amp]):
    """A precision, which waits for what is to run in it: a gradient stage, or a function."""

    @overload
    def __call__(self, inner: GradStage, /) -> Amp: ...
    @overload
    def __call__(self, inner: Callable[..., Any], /) -> InPrecision: ...
    def __call__(self, inner: Any, /) -> Any:
        if isinstance(inner, Stage) or not callable(inner):
            return super().__call__(inner)
        return InPrecision(inner, self.keywords["precision"], self.keywords["modules"])


@explained
def amp(
    precision: Literal["fp32", "tf32", "bf16", "fp16", "bf16-true", "fp16-true", "fp64"],
    modules: Mapping[str, Literal["fp32", "bf16", "fp16"]] | None = None,
    init_scale: _Scale = 2.0**16,
    growth: Annotated[float, bounded(1)] = 2.0,
    backoff: Annotated[float, bounded(0, 1, above=True, below=True)] = 0.5,
    interval: int = 2000,
    min_scale: _Scale = 1.0,
    name: str = "amp",
) -> Policy:
    """Run a model in another precision: a step behind `fl.grad`, or a function that evaluates.

    - ``"bf16"``, ``"fp16"``: under autocast. Parameters, gradients and optimizer state are float32.
    - ``"bf16-true"``, ``"fp16-true"``, ``"fp64"``: parameters and buffers have this dtype from
      `init` on, and the floating-point tensors of each batch are converted to it. For the half
      precisions, mean gradients and optimizer state are float32 all the same; there is no loss
      scale.
    - ``"tf32"``: float32, whose matrix products a GPU may round to TF32. The process's setting is
      another while gradients are computed, or, compiled, while the step runs.
    - ``"fp32"``: as it is.

    ``"fp16"`` adds loss scaling, so that small gradients do not underflow. The scale is kept in
    ``state["amp"]`` and reported as ``"amp.scale"``. A non-finite gradient skips the step and
    multiplies the scale by `backoff`; `interval` finite steps in a row multiply it by `growth`
    (Micikevicius et al., 2018; the rule and defaults of ``torch.amp.GradScaler``).

    Applied to a function ``(model, batch)`` in place of a stage, the result is for `fl.evaluate`,
    `fl.validate` and `fl.predict`, which run in the state's own precision otherwise:
    ``fl.evaluate(fl.amp("bf16")(loss), state, data)``.

    Args:
        precision: One of these.
        modules: Autocast for some modules, by their names or globs (``"*.norm*"``): ``{"head":
            "fp32"}``. What is called in them is included, the innermost module counts, and of two
            globs the last. What enters a module in ``"fp32"`` is float32, and so is what comes out
            of one in half precision into float32.
        init_scale: The first loss scale.
        growth: Factor after `interval` finite steps in a row, at least 1.
        backoff: Factor after a non-finite step, between 0 and 1.
        interval: Finite steps in a row before the scale grows, at least 1.
        min_scale: Lower bound of the scale. A run that stays at this bound has another problem
            than overflow.
        name: Name of the slot.

    Raises:
        TypeError: `interval` is not an integer, or `modules` is no mapping; or, at the call, the
            parameters have another dtype than `precision` stores.
        ValueError: `precision` is unknown, a scale is outside ``[2**-126, 2**126]``, or another
            number is out of range; or, at the call, a glob of `modules` fits none.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, amp("fp16"), fl.update(fl.optim.sgd(0.1)))
    >>> float(step.init(torch.nn.Linear(2, 1))["amp"]["scale"])
    65536.0

    >>> step = fl.pipe(loss, fl.grad, amp("fp64"), fl.update(fl.optim.sgd(0.1)))
    >>> state, metrics = step(step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2))
    >>> state.params["weight"].dtype
    torch.float64
    """
    own = as_modules(modules)
    check_modules(precision, own)
    return Policy(
        Amp,
        precision=precision,
        modules=own,
        init_scale=init_scale,
        growth=growth,
        backoff=backoff,
        interval=as_count(interval, "amp(interval=...)", 1),
        min_scale=min_scale,
        name=name,
    )


def _stored(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    floats = [t for t in tensors.peek() if t.is_floating_point()]
    if all([t.dtype == dtype for t in floats]):
        return tensors
    return Tensors(cast(dict(tensors), dtype))


def _check_stored(stage: Amp, params: Tensors, dtype: torch.dtype) -> None:
    """Refuse a state whose parameters have another dtype."""
    others = [d for d in params.dtypes if d.is_floating_point and d != dtype]
    if others:
        raise TypeError(
            f"{stage.describe()} stores parameters in {_name(dtype)}, and those of the state "
            f"are {_name(others[0])}. The usual cause: the state was made by another step. "
            "step.init(state) converts them."
        )


def _name(dtype: torch.dtype) -> str:
    """The name of a dtype."""
    return str(dtype).removeprefix("torch.")

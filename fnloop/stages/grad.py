"""``grad``: from a loss function to its gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import optree
import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop._torch.autograd import gradients
from fnloop._torch.random import seeded
from fnloop._torch.tracing import compilation, transformed
from fnloop.stages.base import GradStage, as_function, takes_state
from fnloop.stages.measure import Measured, constant, explain, measure
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.key import fold
from fnloop.values.packed import groups_of, joined, parted, pick
from fnloop.values.state import State


@tree
class Grad(GradStage):
    """The stage that `grad` makes.

    Attributes:
        loss: ``(model, batch) -> loss``; a bare function, or a tree with ``__call__``.
    """

    spelling: ClassVar[str] = "grad"
    loss: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", as_function(self.loss, "loss(model, batch)"))

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        return self._traced(state, x) if transformed() else self._eager(state, x, _seeds)

    def mean(self, state: State, batch: Any) -> tuple[State, Grads]:
        """The same gradients as a mean with weight one; not inside transforms.

        For who would divide by the weight at once: it saves a pass over the gradients. They own
        their memory alone, or share it with nothing but each other.
        """
        return self._eager(state, batch, _mean_seeds)

    def _eager(self, state: State, batch: Any, seeds: Callable[..., Any]) -> tuple[State, Grads]:
        # The autograd engine: 1.4 to 2 times as fast as torch.func.grad outside of transforms.
        names = state.skeleton.trainable
        leaves = [state.params[name].detach().requires_grad_() for name in names]
        trainable = dict(zip(names, leaves, strict=True))
        params = trainable if len(names) == len(state.params) else {**state.params, **trainable}

        def run(model: Any) -> tuple[Any, ...]:
            # The backward too: activation checkpointing runs the model again there.
            measured = self._measure(state, model, batch)
            if not measured.loss.requires_grad:
                raise ValueError(_NO_GRADIENT.format(loss=self.loss))
            seed, rescale, weight = seeds(state, measured)
            return measured.metrics, gradients(measured.loss, leaves, seed), rescale, weight

        recording = torch.is_grad_enabled()
        with _seed(state):
            if not recording:
                torch.set_grad_enabled(True)
            try:
                result, buffers = state.skeleton.call(run, params, state.buffers, training=True)
            finally:
                if not recording:
                    torch.set_grad_enabled(False)
        metrics, grads, rescale, weight = result
        return self._result(state, metrics, buffers, grads, rescale, weight)

    def _traced(self, state: State, batch: Any) -> tuple[State, Grads]:
        # Under vmap, grad and compile; autograd.grad is not always usable there.
        trainable = {name: state.params[name] for name in state.skeleton.trainable}

        def objective(trainable: dict[str, Tensor]) -> tuple[Tensor, Any]:
            measured, buffers = state.skeleton.call(
                lambda model: self._measure(state, model, batch),
                {**state.params, **trainable},
                state.buffers,
                training=True,
            )
            seed, rescale, weight = _seeds(state, measured)
            return measured.loss * seed, (measured.metrics, buffers, rescale, weight)

        with _seed(state):
            grads, (metrics, buffers, *factors) = _grad_with_aux(objective, trainable)
        return self._result(state, metrics, buffers, list(grads.values()), *factors)

    def _measure(self, state: State, model: Any, batch: Any) -> Measured:
        arguments = (model, batch, state) if takes_state(self.loss) else (model, batch)
        try:
            if "autocast" in state.context:
                with torch.autocast(state.key.device.type, dtype=state.context["autocast"]):
                    result = self.loss(*arguments)
            else:
                result = self.loss(*arguments)
        except Exception as error:
            explain(error, self.loss, state, batch)
            raise
        return measure(result, batch, self.loss)

    def _result(
        self,
        state: State,
        metrics: dict[str, Any],
        buffers: dict[str, Tensor],
        grads: list[Tensor],
        rescale: Tensor | None,
        weight: Tensor,
    ) -> tuple[State, Grads]:
        finite = constant(True, weight.device, torch.bool)
        named = dict(zip(state.skeleton.trainable, grads, strict=True))
        groups = groups_of(pick(state.params, named))
        units = joined(named, groups)
        if rescale is not None:
            wide = [g.to(torch.float32) if g.dtype in _HALF else g for g in units.values()]
            wide = foreach.mul(wide, rescale.to(torch.float32))
            finite = foreach.all_finite(wide)
            units = dict(zip(units, wide, strict=True))
        total = parted(units, groups, named)
        after = state.replace(buffers=buffers) if buffers else state
        return after, Grads(total, weight, finite, metrics)

    def describe(self) -> str:
        return "grad"

    def lines(self) -> list[str]:
        return [short(self.loss), "grad"]


def grad(loss: Callable[..., Any]) -> Grad:
    """Gradients of a loss: the first stage of a pipeline.

    The loss is called as ``loss(model, batch)``, with the model in training mode, or as
    ``loss(model, batch, state)`` if it takes three arguments. It returns a scalar, which is the
    mean over the batch's examples; or ``fl.Mean(total, weight)``; or either with a dict of metrics.
    Parameters that do not require gradients are left alone.

    Args:
        loss: A function, or a tree (`fl.tree`) with ``__call__``.

    >>> step = grad(lambda model, batch: model(batch).square().mean())
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> state, grads = step(state, torch.ones(3, 2))
    >>> grads.total["weight"].shape, float(grads.weight)
    (torch.Size([1, 2]), 3.0)
    """
    return Grad(loss)


_HALF = frozenset((torch.float16, torch.bfloat16))

_NO_GRADIENT = (
    "The loss {loss} does not depend on any parameter that requires gradients. The usual causes: "
    "the loss was computed under torch.no_grad(), or detached (.item(), .numpy()); it uses a "
    "model from "
    "outside instead of the one that it is given; or all parameters are frozen."
)


def _seeds(state: State, measured: Measured) -> tuple[Tensor, Tensor | None, Tensor]:
    """The backward's seed, the factor that makes its result the gradient of the total, the weight.

    Without a loss scale the seed is chosen so that the backward gives the total at once. With one
    (or with half-precision parameters) it gives the scaled gradient of the MEAN, so that float16
    keeps its range whatever the weight; the factor is then applied in float32.
    """
    loss, weight = measured.loss, measured.weight
    scale = state.context.get("scale")
    if scale is None and _HALF.isdisjoint({p.dtype for p in state.params.values()}):
        # d total: the weight times d mean
        return constant(measured.examples or 1, loss.device, loss.dtype), None, weight
    if scale is None:
        scale = constant(1, loss.device, torch.float32)
    if measured.examples is not None:
        return scale.to(loss.dtype), weight / scale, weight
    divisor = torch.where(weight > 0, weight, torch.ones_like(weight))
    return (scale / divisor).to(loss.dtype), divisor / scale, weight


def _mean_seeds(state: State, measured: Measured) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `_seeds`, for the gradient of the mean with weight one, where no scale is in the way."""
    loss = measured.loss
    if measured.examples is None or not _HALF.isdisjoint({p.dtype for p in state.params.values()}):
        return _seeds(state, measured)
    weight = constant(1 if measured.examples else 0, loss.device, torch.float64)
    return constant(1, loss.device, loss.dtype), None, weight


def _grad_with_aux(
    objective: Callable[[dict[str, Tensor]], tuple[Tensor, Any]], params: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Any]:
    """`torch.func.grad` whose auxiliary output may hold more than tensors."""
    structure: Any = None
    others: list[Any] = []

    def only_tensors(params: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        nonlocal structure, others
        value, aux = objective(params)
        leaves, structure = optree.tree_flatten(aux)
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return value, [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    grads, tensors = torch.func.grad(only_tensors, has_aux=True)(params)
    rest = iter(tensors)
    leaves = [next(rest) if other is None else other for other in others]
    return grads, optree.tree_unflatten(structure, leaves)


def _seed(state: State) -> Any:
    """Randomness of this micro-batch: a function of (key, step, micro-batch)."""
    recording = compilation()
    if recording is not None:
        return recording.seeded(state.key, state.step, state.context.get("micro", 0))
    try:
        key, step = int(state.key.item()), int(state.step.item())
    except RuntimeError:  # vmapped over states: vmap itself refuses random operations
        return contextlib.nullcontext()
    return seeded(fold(key, step, state.context.get("micro", 0)), state.key.device)

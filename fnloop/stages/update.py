"""``update``: from gradients to a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop._torch.tracing import tracing, transformed
from fnloop.optim import joint
from fnloop.optim.base import Optimizer, keep_if
from fnloop.stages.base import GradStage, Kind, StepStage
from fnloop.stages.grad import Grad
from fnloop.stages.measure import constant
from fnloop.trees.equal import table
from fnloop.trees.nodes import tree, tree_map
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.metrics import Last, Sum
from fnloop.values.packed import groups_of, joined, parted, pick, together
from fnloop.values.state import State


@tree
class Update(StepStage):
    """The stage that `update` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    spelling: ClassVar[str] = "update"
    inner: Any
    optimizer: Any
    name: str = "update"

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                "update takes an optimizer such as fl.optim.adamw(1e-3), got "
                f"{short(self.optimizer)}. A torch.optim class becomes one by "
                "fl.optim.from_torch(torch.optim.AdamW, lr=1e-3)."
            )
        if self.optimizer.makes == "gradients":
            raise TypeError(
                f"{short(self.optimizer)} transforms gradients, but turns them into no update. "
                f"Put an optimizer after it: fl.optim.chain({short(self.optimizer)}, "
                "fl.optim.sgd(0.1))."
            )
        if "scale" in self.optimizer.names():
            raise ValueError(
                'An optimizer cannot be named "scale": fl.update keeps its multipliers under that '
                'name. Give it another: name="...".'
            )
        super().__post_init__()

    def memory(self, state: State) -> dict[str, Any]:
        names = self.optimizer.hyperparameters()
        ones = {name: torch.ones((), device=state.key.device) for name in names}
        return {"scale": ones, **self.optimizer.init(_trainable(state))}

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        # With nothing in between, the mean comes as cheaply as the sum.
        direct = isinstance(self.inner, Grad) and "scale" not in state.context and not transformed()
        after, grads = self._gradients(self.inner.mean if direct else self.inner, state, x)
        if tracing() or state.step.device.type != "cpu":
            return self._select(state, after, grads)
        return self._decide(state, after, grads, direct)

    def _gradients(self, inner: Any, state: State, batch: Any) -> tuple[State, Grads]:
        after, grads = inner(state, batch)
        if not isinstance(grads, Grads):
            raise TypeError(
                f"update got {type(grads).__name__} from the gradient stage, which must return "
                "(state, fl.Grads)."
            )
        return after, grads

    def _decide(
        self, before: State, state: State, grads: Grads, direct: bool
    ) -> tuple[State, dict[str, Any]]:
        """On the CPU looking at a value costs nothing, so a skipped step computes nothing."""
        own, step, weight = state[self.name], int(before.step), grads.weight.item()
        means = list(grads.total.values())
        finite = weight > 0 and bool(grads.finite)
        if finite:
            if not direct or weight != 1:  # they may share memory with a batch, or each other
                means = foreach.copies(means)
            if all([mean.dtype is torch.float32 for mean in means]):
                factor = constant(1.0 / weight, grads.weight.device, torch.float32)
                finite = not foreach.unscale_(means, factor).item()
            else:
                means = foreach.div(means, weight)
                finite = bool(foreach.all_finite(means))
        optimizer, reports = self._now(step, own["scale"])
        metrics = _report(grads.metrics, finite, reports)
        if not finite:
            return state.replace(buffers=before.buffers), metrics
        named_means = dict(zip(grads.total, means, strict=True))
        params, memory = self._apply(optimizer, state, named_means, own, step, True)
        if reports is not self._constant:
            memory = _rest_where_frozen(memory, own)
        return state.replace(
            step=before.step + 1,
            params=params if len(params) == len(state.params) else {**state.params, **params},
            slots={**state.slots, self.name: memory},
        ), metrics

    def _now(self, step: int, scale: dict[str, Tensor]) -> tuple[Optimizer, dict[str, Any]]:
        """The optimizer with its hyperparameters at `step`, and their reports."""
        factors = {name: factor.item() for name, factor in scale.items()}
        if self._constant is not None and all([factor == 1 for factor in factors.values()]):
            return self.optimizer, self._constant
        optimizer = self.optimizer.resolve(step, factors)
        return optimizer, {n: Last(value) for n, value in optimizer.hyperparameters().items()}

    @functools.cached_property
    def _constant(self) -> dict[str, Any] | None:
        """The reports, if all hyperparameters are plain numbers."""
        values = self.optimizer.hyperparameters()
        if not all([isinstance(value, (int, float)) for value in values.values()]):
            return None
        return {name: Last(value) for name, value in values.items()}

    def _select(self, before: State, state: State, grads: Grads) -> tuple[State, dict[str, Any]]:
        """Without looking at any value: both outcomes are computed and one is selected."""
        own = state[self.name]
        counts = grads.weight > 0
        weight = torch.where(counts, grads.weight, torch.ones_like(grads.weight))
        groups = groups_of(grads.total)
        units = joined(grads.total, groups)
        units = {name: t / weight.to(t.dtype) for name, t in units.items()}
        finite = grads.finite & counts & foreach.all_finite(list(units.values()))
        means = parted(units, groups, grads.total)
        optimizer = self.optimizer.resolve(before.step, own["scale"])
        reports = {n: Last(value) for n, value in optimizer.hyperparameters().items()}
        params, memory = self._apply(optimizer, state, means, own, before.step, finite)
        memory = _rest_where_frozen(memory, own)
        return state.replace(
            step=before.step + finite.to(torch.int64),
            params=together(state.params, params),
            buffers=keep_if(finite, state.buffers, before.buffers),
            slots={**state.slots, self.name: memory},
        ), _report(grads.metrics, finite, reports)

    def _apply(
        self,
        optimizer: Optimizer,
        state: State,
        means: dict[str, Tensor],
        own: dict[str, Any],
        step: int | Tensor,
        finite: bool | Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # Kernels go by position: the order is the skeleton's, whoever made the state.
        params, names = state.params, state.skeleton.trainable
        if tuple(params) != names:
            params = _trainable(state)
        if tuple(means) != names:
            if set(means) != set(names):
                wrong = ", ".join(sorted(set(means) ^ set(names)))
                raise ValueError(f"The gradients are not those of the trained parameters: {wrong}.")
            means = pick(means, names)
        try:
            return joint.apply(optimizer, means, own, params, step, finite)
        except (KeyError, RuntimeError, ValueError) as error:
            _explain(error, self, state, own)
            raise


def update(optimizer: Optimizer, name: str = "update") -> Callable[[GradStage], Update]:
    """Apply an optimizer to the gradients: what comes out is a training step.

    The summed gradients are divided by their weight, here and only here. If the result has a value
    that is not finite, or the batch's weight is zero, the step is skipped: parameters, optimizer
    memory, averages and buffers stay as they were, to the bit; ``state.step`` does not move; the
    metrics have weight zero, and ``skipped`` is one.

    Reports the values in force of the learning rate and weight decay, and of every hyperparameter
    given by a schedule, as ``"adamw.lr"``. Each has a multiplier in the state: see `fl.scale`.

    Args:
        optimizer: Such as ``fl.optim.adamw(1e-3)`` or
            ``fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.sgd(0.1))``.
        name: Of the slot.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> new, metrics = step(state, torch.ones(3, 2))
    >>> int(new.step), float(metrics["sgd.lr"]), float(metrics["skipped"])
    (1, 0.1, 0.0)
    >>> new, metrics = step(state, torch.full((3, 2), torch.inf))
    >>> fl.tree_equal(new.params, state.params), float(metrics["skipped"])
    (True, 1.0)
    """
    return functools.partial(Update, optimizer=optimizer, name=name)


def _trainable(state: State) -> dict[str, Tensor]:
    return pick(state.params, state.skeleton.trainable)


def _rest_where_frozen(memory: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """While a learning rate's multiplier is zero, the memory of its optimizer rests."""
    for name, factor in before["scale"].items():
        owner = name.removesuffix(".lr")
        if owner == name or (not (tracing() or factor.is_cuda) and factor.item() != 0):
            continue
        memory = {**memory, owner: keep_if(factor != 0, memory[owner], before[owner])}
    return memory


def _report(
    metrics: dict[str, Any], finite: bool | Tensor, hyperparameters: dict[str, Any]
) -> dict[str, Any]:
    if finite is True:
        return {**metrics, "skipped": _NOT_SKIPPED, **hyperparameters}
    if finite is False:
        blank = {name: metric.empty() for name, metric in metrics.items()}
        return {**blank, "skipped": Sum(1.0), **hyperparameters}
    shown = {name: _where(finite, metric) for name, metric in metrics.items()}
    return {**shown, "skipped": Sum((~finite).to(torch.float64)), **hyperparameters}


_NOT_SKIPPED = Sum(0.0)


def _where(finite: Tensor, metric: Any) -> Any:
    return tree_map(
        lambda x, y: torch.where(finite, torch.as_tensor(x), torch.as_tensor(y)),
        metric,
        metric.empty(),
    )


def _explain(error: Exception, stage: Update, state: State, own: dict[str, Any]) -> None:
    """Add a table to an error whose cause is memory that belongs to another model."""
    wanted = dict(tree_items(stage.optimizer.init(_trainable(state))))
    there = dict(tree_items({name: own[name] for name in own if name != "scale"}))
    rows = [
        (f"slots/{stage.name}/{path}", short(there.get(path, "missing")), short(leaf))
        for path, leaf in wanted.items()
        if path not in there or there[path].shape != leaf.shape
    ]
    if rows:
        error.add_note(
            "The optimizer's memory in the state does not fit the model's parameters:\n"
            + table(("leaf", "the state has", "the optimizer wants"), rows)
            + "\nThe usual cause is a state from another model or optimizer; step.init(state) "
            "fills what is missing."
        )

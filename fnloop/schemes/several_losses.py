"""``several``: the gradients of several losses on one batch, added."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.stages.base import KINDS, Folding, GradStage, Stage, piped
from fnloop.stages.grad import Grad
from fnloop.stages.loss_at import loss_of
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.looking import look_all
from fnloop.values.metrics import Mean
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class Several(GradStage):
    """The stage that `several` makes.

    Attributes:
        parts: The gradient stages, in order.
        names: Their names.
    """

    label: ClassVar[str] = "several"
    parts: tuple[Any, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            for inside in part.stages():
                if inside.slot is not None:
                    raise ValueError(
                        f"{inside.describe()} keeps memory, and is in a part of {self.label}, "
                        f"whose parts keep none. Put it behind: fl.pipe(fl.schemes.{self.label}("
                        f"...), fl.{inside.describe()}, fl.update(optimizer))."
                    )
        super().__post_init__()

    def stages(self) -> Iterator[Stage]:
        for part in self.parts:
            yield from part.stages()
        yield self

    def trained(self, state: State) -> tuple[str, ...]:
        found = {name for part in self.parts for name in part.trained(state)}
        return tuple([name for name in state.skeleton.trainable if name in found])

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        return self.folded(_whole, state, x)

    def folded(self, fold: Folding, state: State, x: Any) -> tuple[State, Grads]:
        after, every = self.gradients(fold, state, x)
        means = filled([grads.mean for grads in every], state.params)
        mean = self.combined(state, means) if means[0] else means[0]
        return after, self.as_one(every, mean, torch.stack(losses_of(every)).sum())

    def gradients(self, fold: Folding, state: State, x: Any) -> tuple[State, list[Grads]]:
        """Those of each part, in order, each folded by its own weights."""
        every = list[Grads]()
        for part in self.parts:
            state, grads = part.folded(fold, state, x)
            every.append(grads)
        if fold is _whole and state.context.micro:
            self._check_weights(every)
        return state, every

    def _check_weights(self, every: Sequence[Grads]) -> None:
        """Refuse a micro-batch whose parts differ in weight, as their sum is merged by one."""
        weights = look_all([grads.weight for grads in every])
        if any([isinstance(weight, Tensor) for weight in weights]) or len(set(weights)) == 1:
            return
        found = ", ".join(f"{n} {w}" for n, w in zip(self.names, weights, strict=True))
        raise ValueError(
            f"The losses of {self.describe()} differ in weight in a micro-batch ({found}), and "
            "what cuts the batch is given their sum, which has one. The usual cause is a stage "
            f"between the two: put fl.accumulate directly behind fl.schemes.{self.label}(...), "
            "which merges each loss by itself."
        )

    def combined(self, state: State, means: Sequence[Tensors]) -> Tensors:
        """One gradient of the gradients of all parts, which have the same names."""
        return functools.reduce(Tensors.add, means)

    def as_one(self, every: Sequence[Grads], mean: Tensors, loss: Tensor) -> Grads:
        """What is handed on: the gradient `mean` of `loss`, and the metrics of all parts."""
        weight = torch.stack([grads.weight for grads in every]).amax(0)
        finite = torch.stack([grads.finite for grads in every]).all()
        metrics = {
            f"{name}/{key}": metric
            for name, grads in zip(self.names, every, strict=True)
            for key, metric in grads.metrics.items()
        }
        return Grads(mean, weight, finite, {"loss": Mean(loss * weight, weight), **metrics})

    def describe(self) -> str:
        return f"{self.label}({', '.join(self.names)})"

    def lines(self) -> list[str]:
        parts = zip(self.names, self.parts, strict=True)
        items = [f"{name}={piped(part.script())},\n" for name, part in parts]
        return [f"{self.label}(\n" + textwrap.indent("".join(items), "    ") + ")"]

    def __repr__(self) -> str:
        return self.lines()[0]


def several(**parts: Callable[..., Any] | GradStage) -> Several:
    """The gradients of several losses on one batch, added: the first stage of a pipeline.

    Each part is a loss, or a gradient stage: with ``fl.grad(loss, only=...)`` the players of a
    game, each of which follows its own loss, move at the same time. (In an `fl.sequence` they take
    turns, and have optimizers of their own.) Each part runs the model once, with the same dropout
    masks, and with BatchNorm's statistics as the part before has left them.

    With `fl.accumulate` directly behind it, and on ranks, each part is merged over micro-batches by
    its own weights, and then all are added: as with the whole batch, whatever the weights. Ranks
    exchange the gradients of each. A stage between the two is given the sum of one micro-batch, in
    which all parts must have the same weight: others are refused where weights can be looked at, in
    a step on CPUs that is not compiled.

    Reports ``"loss"``, the sum, and each part's metrics under its name: ``"generator/loss"``. The
    weight is the largest of a part's; a part with a weight of zero adds nothing.

    Args:
        **parts: Losses or gradient stages without memory.

    Raises:
        TypeError: A part is neither, or there is none.
        ValueError: A part keeps memory, as `fl.amp` for fp16 does: it goes behind. Or, at the call,
            parts differ in weight, and a stage stands between this one and `fl.accumulate`.

    >>> import torch, fnloop as fl
    >>> gradients = several(
    ...     small=lambda model, batch: model.weight.square().sum(),
    ...     large=lambda model, batch: -3.0 * model.weight.sum(),
    ... )
    >>> state = gradients.init(torch.nn.Linear(1, 1, bias=False))
    >>> state = state.replace(params={"weight": torch.ones(1, 1)})
    >>> _, grads = gradients(state, torch.ones(1))
    >>> grads.mean["weight"], float(grads.metrics["loss"]), float(grads.metrics["large/loss"])
    (tensor([[-1.]]), -2.0, -3.0)
    """
    return Several(as_parts_of("several", parts), tuple(parts))


def as_parts_of(who: str, parts: dict[str, Any]) -> tuple[GradStage, ...]:
    """The gradient stages of parts that are losses or gradient stages.

    Raises:
        TypeError: There is none, or one is something else.
    """
    if not parts:
        raise TypeError(
            f"{who} takes losses by name, and got none: fl.schemes.{who}(a=loss, b=other)."
        )
    found: list[GradStage] = []
    for name, part in parts.items():
        if isinstance(part, Stage) and part.kind != "grad":
            raise TypeError(
                f"The part {name!r} of {who} must be a loss or a gradient stage, and is "
                f"{part.describe()}, {KINDS[part.kind]}. Training steps take turns in fl.sequence."
            )
        if not isinstance(part, Stage) and not callable(part):
            raise TypeError(
                f"The part {name!r} of {who} must be a loss or a gradient stage, got {short(part)}."
            )
        found.append(part if isinstance(part, GradStage) else Grad(part))
    return tuple(found)


def _whole(part: GradStage, state: State, x: Any) -> tuple[State, Grads]:
    """A part's gradients of a batch that is not divided."""
    return part(state, x)


def filled(means: Sequence[Tensors], params: Tensors) -> list[Tensors]:
    """The gradients of all parts with the same names: zeros where a part does not reach."""
    reached = {name for mean in means for name in mean}
    return [_filled(mean, [name for name in params if name in reached], params) for mean in means]


def losses_of(every: Sequence[Grads]) -> list[Tensor]:
    """The loss of each part, float64[]; zero where the weight is."""
    losses = [(loss_of(grads), grads.weight > 0) for grads in every]
    return [torch.where(counts, loss, torch.zeros_like(loss)) for loss, counts in losses]


def _filled(mean: Tensors, names: Sequence[str], params: Tensors) -> Tensors:
    """With zeros for names that are missing."""
    if mean.names == tuple(names):
        return mean
    missing = [name for name in names if name not in mean]
    return mean.beside(params.select(missing).zeros()).select(names)

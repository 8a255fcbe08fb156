"""``accumulate``: gradient accumulation over micro-batches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.schedules.by_count import ByCount, by_epoch, by_step, setting, settings
from fnloop.stages.base import GradStage, Kind, mesh_of
from fnloop.trees.nodes import static, tree
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.grads import Grads
from fnloop.values.micro import Micro
from fnloop.values.rows import UnclearRows, cut, rows
from fnloop.values.state import State


@tree
class Accumulate(GradStage):
    """The stage that `accumulate` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "accumulate"
    repeats: ClassVar[bool] = True
    inner: Any
    k: Any = static()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (mesh := mesh_of(self.inner)) is not None:
            raise ValueError(
                f"{self.describe()} is around a stage that is sharded over {mesh}: its ranks "
                "would exchange gradients for each micro-batch, and cut them otherwise than one "
                "process. Shard the whole step: fl.shard(fl.pipe(loss, fl.grad, "
                f"fl.{self.describe()}, fl.update(optimizer)), mesh)."
            )

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        return self.inner.folded(self._mean, state, x)

    def _mean(self, stage: GradStage, state: State, x: Any) -> tuple[State, Grads]:
        outer = state.context
        after = state
        k = parts_at(self.k, state)

        def parts() -> Iterator[Grads]:
            nonlocal after
            for i, part in enumerate(micro_batches(x, k)):
                after = after.within(micro=outer.micro * k + i)
                after, grads = stage(after, part)
                yield grads

        grads = Grads.fold(parts())
        return after.replace(context=outer), grads


def as_parts(k: Any) -> int:
    """A number of parts that a schedule gives; 1 where it gives None."""
    return 1 if k is None else as_count(k, "accumulate(by_epoch({...: k}))", 1)


def parts_at(k: Any, state: State) -> int:
    """The number of parts for the call that is given `state`."""
    return k if type(k) is int else as_parts(setting(k, state, "How batches are cut changes"))


def most_parts(k: Any) -> int:
    """The most parts of all phases."""
    return max(map(as_parts, settings(k)))


def micro_batches(batch: Any, k: int) -> Sequence[Any]:
    """Cut a batch into `k` nearly equal parts, or into single examples if there are fewer.

    Raises:
        ValueError: It is not clear how.
    """
    if isinstance(batch, Micro):
        if not batch.parts:
            raise ValueError(
                "fl.data.Micro has no parts; it takes a tuple of at least one micro-batch."
            )
        return batch.parts
    try:
        size, found = rows(batch), "it has no tensor"
        if size is not None:
            k = max(1, min(k, size))
            bounds = [size * i // k for i in range(k + 1)]
            return [cut(batch, a, b, size) for a, b in itertools.pairwise(bounds)]
    except UnclearRows as unclear:
        found = str(unclear)
    raise ValueError(
        f"accumulate({k}) cannot cut this batch into examples: {found}. Give the "
        "micro-batches yourself: fl.data.Micro((b1, b2, ...))."
    )


@explained
def accumulate(k: int | by_epoch | by_step) -> Callable[[GradStage], Accumulate]:
    """Accumulate gradients over `k` micro-batches: the memory of one, the gradient of all.

    Splits the batch along its leading dimension into `k` nearly equal parts, and with it lists that
    have one item an example. To split it yourself, pass ``fl.data.Micro((b1, b2, ...))``. The
    result equals the gradient of the whole batch, for unequal parts and any weights, because
    gradients merge by a weighted mean (law 4). Batch statistics and dropout see one micro-batch
    at a time; BatchNorm buffers carry over from part to part.

    Args:
        k: Number of parts, at least 1. A batch with fewer examples is split into single examples.
            With ``fl.schedules.by_epoch({4: 2, 8: 4})`` it changes with the epoch, from 1. A
            compiled step has a graph for each number.

    Raises:
        TypeError: `k` is not a whole number.
        ValueError: `k` is below 1; or, at the call, the batch has no tensor, leading dimensions
            that differ, or objects that cannot be split.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> whole, parts = fl.pipe(loss, fl.grad), fl.pipe(loss, fl.grad, accumulate(2))
    >>> state, batch = whole.init(torch.nn.Linear(2, 1)), torch.arange(6.0).reshape(3, 2)
    >>> a, b = whole(state, batch)[1], parts(state, batch)[1]
    >>> torch.allclose(a.mean["weight"], b.mean["weight"]), float(b.weight)
    (True, 3.0)
    """
    if isinstance(k, (list, tuple)):
        raise TypeError(
            f"accumulate(k) takes a whole number, the parts to cut a batch into; got {short(k)}. "
            "Micro-batches of your own are the batch: fl.data.Micro((b1, b2, ...))."
        )
    if not isinstance(k, ByCount):
        return functools.partial(Accumulate, k=as_count(k, "accumulate(k)", 1))
    for parts in k.every():
        as_parts(parts)
    return functools.partial(Accumulate, k=k)

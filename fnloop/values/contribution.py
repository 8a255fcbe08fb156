"""``Contribution``: what one rank adds to a step, to be merged with those of the others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from fnloop._torch.autograd import require_grad
from fnloop._torch.rank_store import is_lost
from fnloop._torch.tracing import derivatives, recording, transformed
from fnloop.distributed.bits import from_bits, to_bits
from fnloop.distributed.gates import RankError, first_difference, gate, leave
from fnloop.distributed.mesh import Mesh
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class Contribution:
    """Gradients of some micro-batches, and the buffers that these have changed.

    Attributes:
        grads: The gradients.
        buffers: The changed buffers by name, such as BatchNorm's running statistics.
        uneven: Names of metrics of which ranks have differently much, such as all predictions.
    """

    grads: Grads
    buffers: dict[str, Tensor]
    uneven: tuple[str, ...] = ()

    @classmethod
    def of(cls, grads: Grads, before: Tensors, after: Tensors) -> Self:
        """From the buffers before and after the micro-batches."""
        if after is before:
            return cls(grads, {})
        pairs = zip(after.items(), before.values(), strict=True)
        return cls(grads, {name: new for (name, new), old in pairs if new is not old})

    def nothing(self) -> Self:
        """One of the same structure that counts for nothing."""
        empty = self.grads.emptied()
        return dataclasses.replace(self, grads=empty.replace(mean=empty.mean.zeros()))

    def outline(self, uneven: Sequence[str] = ()) -> list[str]:
        """What must be alike on all ranks, in words; without the gradients' names.

        Of `uneven` metrics that are the names alone.
        """
        metrics = self.grads.metrics
        return [
            *[f"a metric {name}" for name in uneven],
            *[
                f"a metric {path} {short(leaf)}"
                for path, leaf in tree_items({n: metrics[n] for n in metrics if n not in uneven})
            ],
            *[f"a changed buffer {name} {short(b)}" for name, b in self.buffers.items()],
        ]

    def gathered(self) -> tuple[str, ...]:
        """Names of the metrics that are gathered from all ranks, to be merged as they are."""
        metrics = self.grads.metrics.items()
        return tuple([name for name, metric in metrics if metric.reduction == "merge"])

    @property
    def _even(self) -> dict[str, Any]:
        return {n: m for n, m in self.grads.metrics.items() if n not in self.uneven}

    @property
    def _small(self) -> list[Tensor]:
        metrics = [torch.as_tensor(leaf) for leaf in tree_leaves(self._even)]
        return [self.grads.weight, self.grads.finite, *metrics, *self.buffers.values()]

    def everyones(self, mesh: Mesh) -> list[Contribution]:
        """The contributions of all ranks in order, with this one's mean gradients."""
        if mesh.data == 1:
            return [self]
        small = self._small
        rows, uneven = mesh.gather(to_bits(small)), self._uneven_ones(mesh)
        pairs = zip(rows, uneven, strict=True)
        return [self._read(from_bits(row, small), metrics) for row, metrics in pairs]

    def _uneven_ones(self, mesh: Mesh) -> list[dict[str, Any]]:
        """The uneven metrics of all ranks, which are exchanged by way of the CPU."""
        if not self.uneven:
            return [{}] * mesh.data
        device = self.grads.weight.device
        own = {name: self.grads.metrics[name] for name in self.uneven}
        every = mesh.exchange(tree_map(Tensor.cpu, own))
        return [tree_map(lambda leaf: leaf.to(device), metrics) for metrics in every]

    def _read(self, small: Sequence[Tensor], uneven: dict[str, Any]) -> Contribution:
        rest = iter(small)
        weight, finite = next(rest), next(rest)
        metrics = {**tree_map(lambda _: next(rest), self._even), **uneven}
        metrics = {name: metrics[name] for name in self.grads.metrics}
        grads = self.grads.replace(weight=weight, finite=finite, metrics=metrics)
        return Contribution(grads, {name: next(rest) for name in self.buffers})


def agreed(mesh: Mesh, make: Callable[[], Contribution], params: Tensors) -> Contribution:
    """What `make` returns, once all ranks have made one that fits.

    A parameter of `params` that only other ranks have reached gets a gradient of zero.

    Raises:
        RankError: Another rank has failed, or reports something else.
        ValueError: It is differentiated.
    """
    if mesh.everyone.data == 1 or recording() is not None:
        return make()
    try:
        own = make()
        check_undifferentiated(mesh, own.grads)
        names, outline = own.grads.mean.names, own.outline()
        same, _ = gate(mesh.everyone, "the gradients", repr((names, outline)))
    except Exception as error:
        mesh.hang_up()  # others may wait for this rank in an exchange that torch makes
        if is_lost(error) and not isinstance(error, RankError):
            gate(mesh.everyone, "the gradients")  # who has failed says so there
        leave(mesh.everyone, error)
        raise
    if same:
        return own
    if first_difference(mesh.everyone, outline):
        uneven = () if transformed() else own.gathered()
        if difference := first_difference(mesh.everyone, own.outline(uneven)):
            raise RankError(
                f"The ranks report different things in one step: {difference}. Every rank runs the "
                "same program: metrics and buffers must not depend on the rank, nor on its part of "
                'the batch. (A metric that keeps examples says so by reduction = "merge".)'
            )
        own = dataclasses.replace(own, uneven=uneven)
    reached = {name for each in mesh.everyone.exchange(names) for name in each}
    everywhere = params.select([name for name in params if name in reached]).wide().zeros()
    mean = everywhere.updated(own.grads.mean)
    return dataclasses.replace(own, grads=own.grads.replace(mean=mean))


def check_undifferentiated(mesh: Mesh, tree: Any) -> None:
    """Refuse a derivative of what ranks exchange: each would have that of its own part.

    Args:
        mesh: The ranks.
        tree: What goes into the exchange.

    Raises:
        ValueError: One is asked for, by ``torch.func`` or by ``torch.autograd``.
    """
    if mesh.everyone.data > 1 and (derivatives() or require_grad(tree_leaves(tree))):
        raise ValueError(
            f"The step is sharded over {mesh} and is differentiated: inside of torch.func, or by "
            "torch.autograd, as the state, the batch or what the loss uses requires gradients. "
            "Each rank would have the derivative of its own part. Differentiate the step without "
            "fl.shard, on each rank with the whole state, fl.gather(state); or detach what "
            "requires gradients."
        )


def merged_buffers(contributions: Sequence[Contribution], before: Tensors) -> Tensors:
    """The buffers after a step: means over the contributions, by their weights.

    Integers, such as BatchNorm's counter of batches, count once.
    """
    changed = contributions[0].buffers
    if not changed or len(contributions) == 1:
        return before.updated(Tensors(changed)) if changed else before
    weights = [each.grads.weight.double() for each in contributions]
    total = functools.reduce(torch.add, weights)
    some = total > 0
    merged: dict[str, Tensor] = {}
    for name, own in changed.items():
        values = [each.buffers[name] for each in contributions]
        if own.is_floating_point() or own.is_complex():
            terms = [value * weight for value, weight in zip(values, weights, strict=True)]
            mean = (functools.reduce(torch.add, terms) / total.where(some, 1.0)).to(own.dtype)
            alike = functools.reduce(torch.logical_and, [v == values[0] for v in values])
            new = torch.where(alike, values[0], mean)  # what no rank changed keeps its bits
        else:
            counted = [v.where(w > 0, before[name]) for v, w in zip(values, weights, strict=True)]
            new = functools.reduce(torch.maximum, counted)
        merged[name] = new.where(some, before[name])
    return before.updated(Tensors(merged))

"""``Fold``: the weighted mean of gradients over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch

from fnloop.distributed.mesh import Mesh
from fnloop.stages.accumulate import micro_batches, most_parts, parts_at
from fnloop.stages.base import GradStage, Kind
from fnloop.stages.placements import dims_of
from fnloop.trees.nodes import static, tree
from fnloop.trees.show import short
from fnloop.values.batch_norms import BatchNorms, refuse_own_synchronization
from fnloop.values.contribution import (
    Contribution,
    agreed,
    check_undifferentiated,
    merged_buffers,
)
from fnloop.values.grads import Grads
from fnloop.values.looking import look
from fnloop.values.merging import merge
from fnloop.values.placing import (
    check_same,
    cut_like,
    gathered,
    is_cut,
    place_state,
    scattered,
    summed,
    whole_state,
)
from fnloop.values.state import State
from fnloop.values.tensors import Tensors

PLANS = {"replicate": False, "zero2": True, "zero3": True}
"""The plans for `mesh.data`, and whether each divides the state among these ranks."""


@tree
class Fold(GradStage):
    """`fl.accumulate` over the ranks of a mesh, which `fl.shard` puts into a step.

    Every rank is given the whole batch, which is cut into micro-batches in one flat cut: they have
    the same examples, and the same random numbers, as those of one process. Each rank computes the
    gradients of its own; then they are merged, and all ranks have the same.

    Attributes:
        k: Micro-batches of a rank; if canonical, of all ranks together. It may change by phases.
        mesh: The ranks.
        plan: How the parameters are kept.
        canonical: Whether all micro-batches are merged one by one, in their order, so that the
            result does not depend on the number of ranks.
        sync_batchnorm: Whether batch norms are those of the examples of all ranks.
        placements: How parameters are cut among the ranks that share a model: pairs of a pattern
            and a dimension, or ``"tensor"`` for the names that are known; None if none share it.
    """

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "shard"
    inner: Any
    k: Any = static()
    mesh: Mesh = static(Mesh())
    plan: str = "replicate"
    canonical: bool = False
    sync_batchnorm: bool = False
    placements: Any = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.inner.stages():
            if part.slot is not None:
                raise ValueError(
                    f"{part.describe()} is inside of the mean over ranks and keeps memory, which "
                    "would differ from rank to rank. Put it after fl.accumulate in the pipe."
                )

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        check_undifferentiated(self.mesh, state.params)
        return self.inner.folded(self._mean, state, x)

    def _mean(self, stage: GradStage, state: State, x: Any) -> tuple[State, Grads]:
        k = parts_at(self.k, state)
        total = k if self.canonical else k * self.mesh.data
        parts = micro_batches(x, total)
        fold = self._in_order if self.canonical else self._at_once
        grads, contributions = fold(stage, state, state.context.micro * total, parts)
        return state.replace(buffers=merged_buffers(contributions, state.buffers)), grads

    def _at_once(
        self, stage: GradStage, state: State, first: int, parts: Sequence[Any]
    ) -> tuple[Grads, list[Contribution]]:
        """Each rank merges its own micro-batches; then the ranks merge once.

        With "zero3" their gradients are merged in each backward pass already; with synchronized
        batch norms they are weighed in it.
        """
        mesh, count = self.mesh, len(parts)
        mine = range(count * mesh.rank // mesh.data, count * (mesh.rank + 1) // mesh.data)
        merged = self.plan == "zero3" and is_cut(state.params)
        synced = self.sync_batchnorm and mesh.everyone.data > 1

        def whole() -> State:  # not kept: it has all parameters
            return state if merged else state.replace(params=state.params.opened())

        if synced:  # what ranks compute in one turn are parts of one micro-batch
            mine = range(mesh.rank, count, mesh.data)
            own = self._in_step(stage, whole().within(norms=BatchNorms(mesh)), first, parts, mine)
        elif merged:
            own = self._in_step(stage, whole(), first, parts, mine)
        else:
            own = self._agreed(stage, whole(), first, parts, mine)
        every = own.everyones(mesh)
        weight = torch.stack([each.grads.weight for each in every]).sum(0)
        mean = own.grads.mean
        if mesh.data > 1 and not merged:
            share = None
            if not synced:
                share = own.grads.weight.double() / torch.where(weight > 0, weight, 1)
                counts = look(own.grads.weight > 0)
                if counts is not True:
                    mean = mean.where(counts, mean.zeros())
            placed = state.params.select(mean)
            cut = is_cut(placed)
            mean = scattered(mean, placed, share) if cut else summed(mean, mesh, share)
        finite = torch.stack([each.grads.finite for each in every]).all()
        metrics = merge([each.grads.metrics for each in every])
        return Grads(mean, weight, finite, metrics), every

    def _in_order(
        self, stage: GradStage, state: State, first: int, parts: Sequence[Any]
    ) -> tuple[Grads, list[Contribution]]:
        """The ranks compute micro-batches in turn, and all merge every one of them in order."""
        mesh, count, every = self.mesh, len(parts), list[Contribution]()
        whole = state.replace(params=state.params.opened())

        def gradients() -> Iterator[Grads]:
            for i in range(0, count, mesh.data):
                mine = range(i + mesh.rank, min(i + mesh.rank + 1, count))
                own = self._agreed(stage, whole, first, parts, mine)
                turn = own.everyones(mesh)[: count - i]
                every.extend(turn)
                means = gathered(own.grads.mean, mesh)
                yield from [c.grads.replace(mean=m) for c, m in zip(turn, means, strict=False)]

        grads = Grads.fold(gradients())
        placed = state.params.select(grads.mean)
        if is_cut(placed):
            grads = grads.replace(mean=cut_like(grads.mean, placed))
        return grads, every

    def _agreed(
        self, stage: GradStage, state: State, first: int, parts: Sequence[Any], mine: range
    ) -> Contribution:
        """The gradients of some micro-batches; without any, of one that counts for nothing."""

        def gradients() -> Iterator[Grads]:
            nonlocal after
            for i in mine or (0,):
                after, grads = stage(after.within(micro=first + i), parts[i])
                yield grads

        def contribution() -> Contribution:
            grads = Grads.fold(gradients())
            found = Contribution.of(grads, state.buffers, after.buffers)
            return found if mine else found.nothing()

        after = state
        return agreed(self.mesh, contribution, state.params)

    def _in_step(
        self, stage: GradStage, state: State, first: int, parts: Sequence[Any], mine: range
    ) -> Contribution:
        """As `_agreed`, of gradients that are means over all ranks, or this one's part of them.

        Their weights are this rank's. All ranks compute equally many micro-batches; of those too
        many, nothing is kept but the statistics of all ranks.
        """
        norms = state.context.norms
        turns = -(-len(parts) // self.mesh.data)
        after, weight = state, torch.zeros_like(state.step)

        def gradients() -> Iterator[Grads]:
            nonlocal after, weight
            for turn in range(turns):
                counts = turn < len(mine)
                i = mine[turn] if counts else 0
                new, grads = stage(after.within(micro=first + i, counts=counts), parts[i])
                if counts:
                    weight = weight + grads.weight
                else:
                    grads = grads.emptied()
                if counts or not turn:  # of the first, for the names of the buffers that it changes
                    after = new
                elif norms is not None:
                    synced = new.buffers.select(norms.names)
                    after = after.replace(buffers=after.buffers.updated(synced))
                yield grads.replace(weight=self.mesh.sum(grads.weight))

        def contribution() -> Contribution:
            grads = Grads.fold(gradients()).replace(weight=weight)
            return Contribution.of(grads, state.buffers, after.buffers)

        return agreed(self.mesh, contribution, state.params)

    def placed(self, state: State) -> State:
        if self.mesh.everyone.data == 1:
            return state
        check_same(self.mesh.everyone, state)
        if not self.sync_batchnorm:
            refuse_own_synchronization(getattr(state.skeleton, "module", None))
        dims = self._dims(whole_state(state))
        return place_state(state, self.mesh, PLANS[self.plan], dims)

    def _dims(self, state: State) -> dict[str, int | None] | None:
        if self.mesh.tensor == 1:
            return None
        chosen = None if self.placements == "tensor" else dict(self.placements)
        return dims_of(state, chosen, self.mesh.tensor)

    def shares(self, state: State) -> dict[str, int]:
        """Among how many ranks that share a model each parameter is cut; nothing is exchanged."""
        outlines = state.replace(params=Tensors(dict(state.params.outlines())))
        dims = self._dims(outlines) or {}
        return {n: 1 if dims.get(n) is None else self.mesh.tensor for n in state.params}

    @property
    def most(self) -> int:
        """The largest `k` of all phases."""
        return most_parts(self.k)

    def describe(self) -> str:
        reduce = ', reduce="canonical"' if self.canonical else ""
        plan = short(self.plan)
        if self.placements is not None:
            own = short(self.placements if self.placements == "tensor" else dict(self.placements))
            plan = own if self.plan == "replicate" else f"({plan}, {own})"
        norms = ", sync_batchnorm=True" if self.sync_batchnorm else ""
        return f"shard({self.mesh}, {plan}{reduce}{norms})".replace("'", '"')

    def lines(self) -> list[str]:
        own = [self.describe()]
        return [f"accumulate({short(self.k)})", *own] if self.most > 1 else own

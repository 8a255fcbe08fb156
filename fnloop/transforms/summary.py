"""``summary``: a step stage by stage, and its model module by module."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

import optree

from fnloop.distributed.mesh import Mesh
from fnloop.names.keywords import explained
from fnloop.optim.torch_bridge import from_torch
from fnloop.stages.base import Stage
from fnloop.stages.step_given import check_is_step
from fnloop.transforms.dry_run import Flops, dry_run
from fnloop.transforms.model_rows import ModuleRow, Sizes, model_rows, sizes_by_name, total
from fnloop.transforms.sharded import Sharded, sharded
from fnloop.transforms.stage_rows import StageRow, held, stage_rows
from fnloop.transforms.summary_text import WIDTH, amount, cut, fitted
from fnloop.trees.show import bytes_text, short
from fnloop.values.counts import as_count
from fnloop.values.state import State

_NOTE = (
    "fnloop: fl.summary runs the step on tensors without values, as fl.compile records it. What "
    "cannot be recorded cannot be counted: without a batch it tells of stages and parameters alone."
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `fl.summary` tells. Printed, it is a table of at most 80 columns.

    Attributes:
        stages: The stages, from the loss on.
        modules: The modules, in the model's order, each once.
        sizes: Of the model: its parameters, how many of them are trained, and bytes with buffers.
            Of a population, the sizes of one member.
        state: Bytes of the whole state; of whole tensors, where ranks divide them.
        flops: Operations of a step on the batch; None without a batch. Of a population, of all.
        batch: Dtypes and shapes of the batch; empty without one.
        members: How many runs the step does at once; 1 if it is no population.
        sharded: What each rank keeps and moves; None if the step is not sharded.
        depth: To which depth of the model it is printed; None for all.
    """

    stages: tuple[StageRow, ...]
    modules: tuple[ModuleRow, ...]
    sizes: Sizes
    state: int
    flops: Flops | None
    batch: str
    members: int
    sharded: Sharded | None
    depth: int | None

    def __str__(self) -> str:
        parts = [self._stages(), self._modules(), self._totals()]
        if self.sharded is not None and self.sharded.mesh.everyone.data > 1:
            parts.append(f"{textwrap.fill(self.sharded.title, WIDTH)}\n{self.sharded.moves()}")
        return "\n\n".join(parts)

    __repr__ = __str__

    def _stages(self) -> str:
        rows = [
            (r.text, r.slot, amount(r.values), bytes_text(r.bytes))
            if r.slot
            else (r.text, "", "", "")
            for r in self.stages
        ]
        return fitted(("stage", "memory", "numbers", "bytes"), rows, left=2)

    def _modules(self) -> str:
        shown = [r for r in self.modules if self.depth is None or r.depth <= self.depth]
        ran = any([row.flops is not None for row in shown])
        rows: list[tuple[str, ...]] = []
        for row in shown:
            name = "  " * row.depth + row.path.rpartition(".")[2]
            times = f" x{row.calls}" if row.calls > 1 else ""
            cells = [
                f"{name}{times}  {row.kind}" if row.depth else row.kind + times,
                *([row.output] if ran else []),
                amount(row.parameters) if row.parameters else "",
                _share(row.trained, row.parameters) if row.parameters else "",
                bytes_text(row.bytes) if row.bytes else "",
                *([amount(row.flops) if row.flops else ""] if ran else []),
            ]
            rows.append(tuple(cells))
        output, flops = (("output",), ("FLOPs",)) if ran else ((), ())
        header = ("model", *output, "parameters", "trained", "bytes", *flops)
        return fitted(header, rows, left=1 + ran)

    def _totals(self) -> str:
        parameters, trained, count = self.sizes
        each = f", of each of {self.members} members" if self.members > 1 else ""
        lines = [
            f"{parameters:,} parameters, {_share(trained, parameters)} trained, "
            f"{bytes_text(count)} with buffers{each}",
            f"The state: {bytes_text(self.state)}",
        ]
        if self.flops is not None:
            forward, backward, rest = map(amount, self.flops)
            lines += [
                cut(f"A step on {self.batch}", 60) + f": {amount(self.flops.step)} FLOPs",
                f"  forward {forward}, backward {backward}, rest {rest}",
            ]
        return "\n".join(lines)


def _counted(step: Any) -> Any:
    """What is run: all of the step, but for an update by an optimizer that works in place."""
    if not isinstance(step, Stage):
        return step
    found: Any = step.uncompiled
    leaves: Any = optree.tree_leaves(found, is_leaf=lambda node: isinstance(node, from_torch))
    if any([isinstance(leaf, from_torch) for leaf in leaves]):
        while found.kind != "grad" and isinstance(getattr(found, "inner", None), Stage):
            found = found.inner
    return found


def _share(part: int, whole: int) -> str:
    return {0: "none", whole: "all"}.get(part, amount(part))


@explained
def summary(
    step: Any,
    state: State,
    batch: Any = None,
    depth: int | None = 2,
    mesh: Mesh | int | None = None,
) -> Summary:
    """What a step consists of, and what it takes, before anything runs.

    It tells the pipeline stage by stage, with the memory of each; and the model module by module,
    with parameters, how many of them are trained, and bytes. With a batch, also what each module
    returns, and the floating-point operations of its forward pass and of the whole step, by the
    formulas of ``torch.utils.flop_counter``: matrix products, convolutions and attention, a
    multiplication with an addition as two. (Papers often count it as one.) Nothing is computed
    for it: tensors have no values, so that state, model and random numbers stay as they are, and
    a model on the device ``meta`` may be larger than the memory. Of `fl.optim.from_torch`, which
    works in place, what comes before the update is counted; of `fl.sequence`, all parts.

    Of a step from `fl.shard` it also tells what each rank keeps, and what a step moves; operations
    are those of this rank. No other rank has to call it.

    Args:
        step: A training step; compiled ones, populations, sequences too. Or a function ``(state,
            batch) -> (state, metrics)``.
        state: Its state; it is not changed.
        batch: A batch as the step takes it. On the device ``meta``, its shapes are enough.
        depth: To which depth modules are printed; None for all. What is deeper counts in what it
            is in.
        mesh: Other ranks than those of a sharded step: a mesh, or a number for the axis `data`. So
            one process tells what a hundred would do.

    Raises:
        TypeError: `state` is no state; or `mesh` is given for a step that is not sharded.

    >>> import torch, fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.adam(0.1)))
    >>> state = step.init(torch.nn.Sequential(torch.nn.Linear(100, 10), torch.nn.Linear(10, 1)))
    >>> told = summary(step, state, torch.ones(5, 100))
    >>> print(told)
    stage                 memory  numbers   bytes
    <lambda>
    grad
    update(adam(lr=0.1))  update    2,045  8.2 kB
    <BLANKLINE>
    model        output     parameters  trained   bytes   FLOPs
    Sequential   f32[5,1]        1,021      all  4.1 kB  10,100
      0  Linear  f32[5,10]       1,010      all  4.0 kB  10,000
      1  Linear  f32[5,1]           11      all    44 B     100
    <BLANKLINE>
    1,021 parameters, all trained, 4.1 kB with buffers
    The state: 12.3 kB
    A step on f32[5,100]: 20,300 FLOPs
      forward 10,100, backward 10,200, rest 0
    >>> told.sizes.parameters, told.flops.forward, 2 * 5 * (100 * 10 + 10 * 1)
    (1021, 10100, 10100)

    >>> step = fl.shard(step, fl.mesh(), "zero2")
    >>> found = summary(step, state, mesh=4).sharded
    >>> found.held, found.moved
    (3152, 6168)
    """
    check_is_step(step, "summary")
    depth = None if depth is None else as_count(depth, "summary(depth=...)")
    ranks = sharded(step, state, mesh)
    if mesh is not None and ranks is None:
        raise TypeError(
            f"summary(mesh=...) is for a step from fl.shard(step, mesh, plan); got {short(step)}."
        )
    trained, ran = state.skeleton.trainable, None
    if isinstance(step, Stage):
        trained = step.trained(state)
    if batch is not None:
        try:
            ran = dry_run(_counted(step), state, batch)
        except Exception as error:
            error.add_note(_NOTE)
            raise
    sizes = sizes_by_name(state, trained)
    everything = {name: getattr(state, name) for name in _PARTS}
    return Summary(
        tuple(stage_rows(step, state)),
        tuple(model_rows(state, sizes, None if ran is None else ran.called)),
        total(sizes.values()),
        held(everything)[1],
        None if ran is None else ran.flops,
        "" if ran is None else short(batch),
        max(state.step.numel(), 1),
        ranks,
        depth,
    )


_PARTS = ("step", "calls", "cursor", "params", "buffers", "key", "slots")

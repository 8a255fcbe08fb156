"""What each rank of a sharded step will keep and move, before anything runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.distributed.cost import Cost, Machine
from fnloop.distributed.mesh import Mesh
from fnloop.stages.base import Stage
from fnloop.stages.fold import PLANS, Fold
from fnloop.stages.sequence import Sequence
from fnloop.stages.update import Update
from fnloop.transforms.summary_text import fitted
from fnloop.transforms.working import Working, share, wide, working
from fnloop.trees.equal import table
from fnloop.trees.show import bytes_text, short
from fnloop.values.placing import is_divisible
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


class Placed(NamedTuple):
    """A tensor of the state.

    Attributes:
        path: Where it is in the state.
        kind: Dtype and shape of the whole tensor.
        placement: ``"whole"``, or the share of a rank, such as ``"1/4"``.
        bytes: Of what a rank keeps of it; the most, if ranks keep differently much.
    """

    path: str
    kind: str
    placement: str
    bytes: int


class Exchange(NamedTuple):
    """Collectives of one kind in a step.

    Attributes:
        what: What is exchanged.
        times: How often in a step, all tensors of one dtype together; 0 for once a use.
        bytes: That a rank sends in a step; at most, where a model decides.
        rounds: How often a message goes round all ranks in a step: for each gather and each
            reduction into pieces, and twice for a sum. Each module is taken to use its parameters
            at once.
    """

    what: str
    times: int
    bytes: int
    rounds: int


@dataclasses.dataclass(frozen=True)
class Sharded:
    """What each rank keeps, and what a step moves; ``fl.summary(...).sharded``. Printed, a table.

    Bytes moved are those that a rank sends when every one passes on what it gets (a ring): of a
    whole tensor's size ``(k - 1) / k`` to gather it, as much to reduce it into pieces, and twice
    that to sum it on all of `k` ranks. Left out are a few numbers (weights, metrics, changed
    buffers, statistics of batch norms), and what an optimizer gathers that looks at whole matrices.

    Attributes:
        title: How it is sharded.
        placed: Every tensor of the state.
        exchanges: The collectives of a step.
        working: What a step adds on a rank, beside activations, if it is not compiled: bytes in
            the backward pass, and before or after it.
        mesh: The ranks.
    """

    title: str
    placed: tuple[Placed, ...]
    exchanges: tuple[Exchange, ...]
    working: Working
    mesh: Mesh

    @property
    def held(self) -> int:
        """Bytes of the state on a rank."""
        return sum(row.bytes for row in self.placed)

    @property
    def moved(self) -> int:
        """Bytes that a rank sends in a step."""
        return sum(row.bytes for row in self.exchanges)

    def on(
        self,
        machine: Machine,
        flops: float,
        activations: float = 0,
        shared: Exchange | None = None,
        doubling: bool = False,
    ) -> Cost:
        """What a step takes on a cluster of such machines, if it is not compiled.

        Args:
            machine: A machine of the cluster.
            flops: Floating-point operations of a rank in a step, forward and backward: for a
                batch as one rank is given it, ``fl.summary(step, state, batch).flops.step``.
            activations: Bytes of what a rank keeps for the backward pass of a micro-batch.
            shared: What ranks that share a model send one another, which a model decides.
            doubling: Whether messages go between and inside of machines by doubling
                (`Machine.levels`), in place of one ring of all ranks (`Machine.ring`).

        >>> import torch, fnloop as fl
        >>> from fnloop.distributed.cost import Link, Machine
        >>> step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.adamw(1e-3)))
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(10_000, 10_000)
        >>> step = fl.shard(step, fl.mesh(), "zero2")
        >>> h100 = Machine(989e12, 0.4, 80e9, 3.35e12, 8, Link(360e9, 3.4e-6), Link(40e9, 14e-6))
        >>> told = fl.summary(step, step.init(model), mesh=64).sharded
        >>> told.on(h100, flops=6 * 1e8 * 1e5)
        on a rank
        memory at the peak    831.4 MB of 80.0 GB
        forward and backward  151.67 ms
        update                0.01 ms
        exchanges             3.04 ms
        a step                154.72 ms, of which 98% forward, backward
        overlapped, at best   151.68 ms
        """
        way = machine.levels if doubling else machine.ring
        ranks, sharing = self.mesh.data, self.mesh.tensor
        exchange = sum(way(r.bytes, r.rounds, ranks, apart=sharing) for r in self.exchanges)
        if shared is not None:
            exchange += way(shared.bytes, shared.rounds, sharing)
        backward, after = self.working
        return Cost(
            memory=round(self.held + max(backward + activations, after)),
            room=machine.memory,
            compute=machine.compute(flops),
            update=machine.touch(2 * self.held),
            exchange=exchange,
        )

    def moves(self) -> str:
        """All but the tensors, as text."""
        exchanges = [
            (row.what, f"{row.times}" if row.times else "each use", bytes_text(row.bytes))
            for row in self.exchanges
        ]
        lines = [
            f"The state on a rank: {bytes_text(self.held)}",
            f"A step adds, if it is not compiled, at most: {bytes_text(max(self.working))}, "
            "beside activations",
            "",
            fitted(("exchange", "times", "bytes a rank sends"), exchanges or [("none", "", "")], 1),
            f"In a step: {bytes_text(self.moved)}",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        tensors = [(*row[:3], bytes_text(row.bytes)) for row in self.placed]
        shown = table(("tensor", "", "on a rank", "bytes"), tensors)
        return f"{self.title}\n\n{shown}\n{self.moves()}"

    __repr__ = __str__


def sharded(step: Any, state: State, mesh: Mesh | int | None) -> Sharded | None:
    """What `fl.summary` tells of ranks; None of a step that is not sharded.

    Args:
        step: A step.
        state: Its state, divided or not.
        mesh: Other ranks than the step's: a mesh, or a number for the axis `data`.
    """
    folds = list(_folds(step))
    if not folds:
        return None
    ranks = folds[0][1].mesh if mesh is None else mesh
    if isinstance(ranks, int):
        ranks = dataclasses.replace(folds[0][1].mesh, data=ranks)
    folds = [(folder, dataclasses.replace(fold, mesh=ranks)) for folder, fold in folds]
    _, fold = folds[0]
    shares = fold.shares(state)
    exchanges = [
        each._replace(what=folder + each.what)
        for folder, fold in (_by_loss(folds) if ranks.data > 1 else ())
        for each in _exchanges(fold, state, shares)
    ]
    placed = tuple(_placed(fold, state, shares))
    return Sharded(
        f"{fold.describe()}, on each of {ranks.everyone.data} ranks",
        placed,
        tuple(exchanges),
        _working(step, folds, state, placed),
        ranks,
    )


def _folds(step: Any, folder: str = "") -> Iterator[tuple[str, Fold]]:
    """The mean over ranks in a step; in a sequence, that of each part, with the part's name."""
    if isinstance(step, Fold):
        yield folder, step
    elif isinstance(step, Sequence):
        for turn in step.turns:
            yield from _folds(turn.step, turn.folder)
    elif isinstance(step, Stage):
        yield from _folds(getattr(step, "inner", None), folder)


def _by_loss(folds: Iterable[tuple[str, Fold]]) -> Iterator[tuple[str, Fold]]:
    """Each mean over ranks; that of several losses is one of each."""
    for folder, fold in folds:
        names, parts = getattr(fold.inner, "names", ()), getattr(fold.inner, "parts", ())
        if not parts:
            yield folder, fold
        for name, part in zip(names, parts, strict=True):
            yield from _by_loss([(f"{folder}{name}/", dataclasses.replace(fold, inner=part))])


def _working(
    step: Stage, folds: list[tuple[str, Fold]], state: State, placed: tuple[Placed, ...]
) -> Working:
    """The most of all parts; what a part has made anew is there while those after it run."""
    found, before = list[Working](), 0
    updates = [part.name for part in step.stages() if isinstance(part, Update)]
    for folder, fold in folds:
        slots = [f"slots/{name}/" for name in updates if name.startswith(folder)]
        params = {f"params/{name}" for name in fold.trained(state)}
        renewed = sum(
            row.bytes for row in placed if row.path in params or row.path.startswith(tuple(slots))
        )
        backward, after = working(fold, state, fold.shares(state), renewed)
        found.append(Working(before + backward, before + after))
        before += renewed
    return Working(*[max(each) for each in zip(*found, strict=True)])


def _placed(fold: Fold, state: State, shares: Mapping[str, int]) -> Iterator[Placed]:
    shapes = {name: outline.shape for name, outline in state.params.outlines()}
    pieces = fold.mesh.data if PLANS[fold.plan] else 1

    def within(path: str, node: Any) -> Iterator[Placed]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from within(f"{path}/{key}", value)
        elif isinstance(node, Tensors):
            own = path.startswith(("params", "slots")) and is_divisible(node, shapes)
            for name, outline in node.outlines():
                part = pieces * shares[name] if own else 1
                placement = f"1/{part}" if part > 1 else "whole"
                yield Placed(f"{path}/{name}", short(outline), placement, _piece(outline, part))
        elif isinstance(node, Tensor):
            yield Placed(path, short(node), "whole", node.nbytes)

    for field in dataclasses.fields(state):
        if field.name not in ("skeleton", "context"):
            yield from within(field.name, getattr(state, field.name))


def _exchanges(fold: Fold, state: State, shares: Mapping[str, int]) -> Iterator[Exchange]:
    k, others = fold.mesh.data, fold.mesh.data - 1
    params = {name: share(p, shares[name]) for name, p in state.params.outlines()}
    trained = [params[name] for name in fold.trained(state)]
    gathered = others * sum(_piece(p, k) for p in params.values())
    again = others * sum(_piece(p, k) for p in trained)
    reduced = others * sum(_piece(wide(p), k) for p in trained)
    dtypes = len({p.dtype for p in params.values()})
    kinds = len({wide(p).dtype for p in trained})
    uses = fold.most * len({name.rpartition(".")[0] for name in params})
    if PLANS[fold.plan] and (fold.plan != "zero3" or fold.canonical):
        yield Exchange("parameters gathered", dtypes, gathered, dtypes)
    if fold.canonical:
        turns = -(-fold.most // k)
        whole = sum(wide(p).nbytes for p in trained)
        sent = turns * others * whole
        yield Exchange("gradients of each micro-batch", turns * kinds, sent, turns * kinds)
    elif fold.plan == "zero3":
        yield Exchange("parameters gathered in the forward pass", 0, fold.most * gathered, uses)
        regathered = "parameters gathered in the backward pass, at most"
        yield Exchange(regathered, 0, fold.most * again, uses)
        yield Exchange("gradients reduced", 0, fold.most * again, uses)
    elif PLANS[fold.plan]:
        yield Exchange("gradients reduced", kinds, reduced, kinds)
    else:
        whole = sum(wide(p).nbytes for p in trained)
        yield Exchange("gradients summed", kinds, 2 * others * whole // k, 2 * kinds)


def _piece(tensor: Tensor, pieces: int) -> int:
    """Bytes of the largest of so many pieces."""
    values = math.prod(tensor.shape) * (2 if tensor.is_complex() else 1)
    size = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return -(-values // pieces) * size

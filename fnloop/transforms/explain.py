"""``explain``: what each rank of a sharded step will keep and move, before anything runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.distributed.mesh import Mesh
from fnloop.names.keywords import explained
from fnloop.stages.base import Stage
from fnloop.stages.fold import PLANS, Fold
from fnloop.stages.sequence import Sequence
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
    """

    what: str
    times: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` tells. Printed, it is a table.

    Attributes:
        title: The fold that was explained.
        placed: Every tensor of the state.
        exchanges: The collectives of a step.
    """

    title: str
    placed: tuple[Placed, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def held(self) -> int:
        """Bytes of the state on a rank."""
        return sum(row.bytes for row in self.placed)

    @property
    def moved(self) -> int:
        """Bytes that a rank sends in a step."""
        return sum(row.bytes for row in self.exchanges)

    def __str__(self) -> str:
        tensors = [(*row[:3], bytes_text(row.bytes)) for row in self.placed]
        exchanges = [
            (row.what, f"{row.times}" if row.times else "each use", bytes_text(row.bytes))
            for row in self.exchanges
        ]
        return "\n".join(
            [
                self.title,
                "",
                table(("tensor", "", "on a rank", "bytes"), tensors),
                f"The state on a rank: {bytes_text(self.held)}",
                "",
                table(("exchange", "times", "bytes a rank sends"), exchanges or [("none", "", "")]),
                f"In a step: {bytes_text(self.moved)}",
            ]
        )

    __repr__ = __str__


@explained
def explain(step: Any, state: State, mesh: Mesh | int | None = None) -> Explanation:
    """What each rank will keep, and what a step will move, before anything runs.

    Bytes moved are those that a rank sends when every one passes on what it gets (a ring): of a
    whole tensor's size ``(k - 1) / k`` to gather it, as much to reduce it into pieces, and twice
    that to sum it on all of `k` ranks. Left out are a few numbers (weights, metrics, changed
    buffers, statistics of batch norms), and what an optimizer gathers that looks at whole matrices.

    Args:
        step: A step from `fl.shard`.
        state: Its state, divided or not.
        mesh: Other ranks than the step's: a mesh, or a number for the axis `data`. So one process
            tells what a hundred would do.

    Raises:
        TypeError: `step` is not sharded.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> step = fl.shard(step, fl.mesh(), "zero2")
    >>> found = explain(step, step.init(torch.nn.Linear(100, 100)), 4)
    >>> found.held, found.moved
    (10156, 60600)
    >>> print(*found.exchanges, sep="\\n")
    Exchange(what='parameters gathered', times=1, bytes=30300)
    Exchange(what='gradients reduced', times=1, bytes=30300)
    """
    folds = list(_folds(step))
    if not folds:
        raise TypeError(f"explain takes a step from fl.shard(step, mesh, plan); got {short(step)}.")
    ranks = folds[0][1].mesh if mesh is None else mesh
    if isinstance(ranks, int):
        ranks = dataclasses.replace(folds[0][1].mesh, data=ranks)
    folds = [(folder, dataclasses.replace(fold, mesh=ranks)) for folder, fold in folds]
    _, fold = folds[0]
    shares = fold.shares(state)
    exchanges = [
        each._replace(what=folder + each.what)
        for folder, fold in (folds if ranks.data > 1 else ())
        for each in _exchanges(fold, state, shares)
    ]
    return Explanation(
        f"{fold.describe()}, on each of {ranks.everyone.data} ranks",
        tuple(_placed(fold, state, shares)),
        tuple(exchanges),
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
    params = {name: _share(p, shares[name]) for name, p in state.params.outlines()}
    trained = [params[name] for name in fold.trained(state)]
    gathered = others * sum(_piece(p, k) for p in params.values())
    again = others * sum(_piece(p, k) for p in trained)
    reduced = others * sum(_piece(_wide(p), k) for p in trained)
    dtypes = len({p.dtype for p in params.values()})
    kinds = len({_wide(p).dtype for p in trained})
    if PLANS[fold.plan] and (fold.plan != "zero3" or fold.canonical):
        yield Exchange("parameters gathered", dtypes, gathered)
    if fold.canonical:
        turns = -(-fold.k // k)
        whole = sum(_wide(p).nbytes for p in trained)
        yield Exchange("gradients of each micro-batch", turns * kinds, turns * others * whole)
    elif fold.plan == "zero3":
        yield Exchange("parameters gathered in the forward pass", 0, fold.k * gathered)
        yield Exchange("parameters gathered in the backward pass, at most", 0, fold.k * again)
        yield Exchange("gradients reduced", 0, fold.k * again)
    elif PLANS[fold.plan]:
        yield Exchange("gradients reduced", kinds, reduced)
    else:
        whole = sum(_wide(p).nbytes for p in trained)
        yield Exchange("gradients summed", kinds, 2 * others * whole // k)


def _share(tensor: Tensor, ranks: int) -> Tensor:
    """The outline of what one of the ranks that share a model has of it."""
    return tensor if ranks == 1 else tensor.new_empty(tensor.numel() // ranks)


def _piece(tensor: Tensor, pieces: int) -> int:
    """Bytes of the largest of so many pieces."""
    values = math.prod(tensor.shape) * (2 if tensor.is_complex() else 1)
    size = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return -(-values // pieces) * size


def _wide(tensor: Tensor) -> Tensor:
    """The outline of its gradient."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return torch.empty(tensor.shape, dtype=torch.float32 if half else tensor.dtype, device="meta")

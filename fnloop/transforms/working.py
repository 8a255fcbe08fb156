"""``working``: what a step takes on a rank beside the state, the batch and activations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fnloop.stages.fold import PLANS, Fold
from fnloop.values.state import State


class Working(NamedTuple):
    """Bytes that a step that is not compiled adds on a rank, at most, and keeps the state before.

    Attributes:
        backward: While activations are there too: gradients, and parameters that are gathered.
        after: While there are no activations: parameters are gathered before, gradients are
            reduced after, and a new state is made.
    """

    backward: int
    after: int


def working(fold: Fold, state: State, shares: Mapping[str, int], renewed: int) -> Working:
    """The bytes by the fold's plan.

    Args:
        fold: The fold.
        state: The state, divided or not.
        shares: Among how many ranks that share a model each parameter is cut.
        renewed: Bytes of parameters and of the optimizer's memory on a rank: a step makes new ones.
    """
    k, pieces = fold.mesh.data, PLANS[fold.plan]
    trained = set(fold.trained(state))
    params = {name: share(p, shares[name]) for name, p in state.params.outlines()}
    gradients = {name: wide(p) for name, p in params.items() if name in trained}
    total = sum(g.nbytes for g in gradients.values())
    whole = sum(p.nbytes for p in params.values()) if pieces else 0
    opened = 2 * whole + whole // k  # while they are gathered
    uneven = sum(g.nbytes for g in gradients.values() if g.numel() % k)
    turns = -(-fold.most // k) if fold.canonical else fold.most
    kept = min(turns, 2) * total  # of the micro-batches before, and of this one
    own = total // k if pieces else total
    new = renewed + 2 * own  # what the optimizer gives for each gradient, too
    if k == 1:
        return Working(kept, max(new, 3 * total if turns > 1 else 0))
    if fold.canonical:
        rows = k + 2 if turns == 1 else 2 * k + 2 + turns
        return Working(whole + kept, max(new, whole + rows * total))
    if fold.plan == "zero3":
        return Working(_of_one_use(params, gradients, k) + min(turns, 3) * total // k, new)
    if fold.plan == "zero2":
        merged = whole + 3 * total if turns > 1 else 0
        reduced = 2 * total + uneven + 2 * total // k
        return Working(whole + kept, max(new, opened, merged, reduced))
    return Working(kept, max(new, 3 * total))


def _of_one_use(params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], k: int) -> int:
    """The most that gathering for one operation, and reducing its gradients, takes.

    The parameters of a module are taken to be used by one operation.
    """

    def bytes_of(names: list[str]) -> int:
        own = [gradients[name] for name in names if name in gradients]
        reduced = [g.nbytes * (3 if g.numel() % k else 2) for g in own]
        return sum(params[name].nbytes for name in names) + sum(reduced)

    owners = itertools.groupby(params, lambda name: name.rpartition(".")[0])
    return max((bytes_of(list(names)) for _, names in owners), default=0)


def share(tensor: Tensor, ranks: int) -> Tensor:
    """The outline of what one of the ranks that share a model has of it."""
    return tensor if ranks == 1 else tensor.new_empty(tensor.numel() // ranks)


def wide(tensor: Tensor) -> Tensor:
    """The outline of its gradient."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return torch.empty(tensor.shape, dtype=torch.float32 if half else tensor.dtype, device="meta")

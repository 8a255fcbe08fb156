"""``shard``: the same step on many processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from fnloop.distributed.mesh import Mesh
from fnloop.names.keywords import explained
from fnloop.stages.accumulate import Accumulate
from fnloop.stages.base import Stage, mesh_of
from fnloop.stages.fold import PLANS, Fold
from fnloop.stages.placements import dims_of
from fnloop.stages.sequence import Sequence
from fnloop.trees.show import short
from fnloop.values.placing import place_state, whole_state
from fnloop.values.state import State

S = TypeVar("S", bound=Stage)


@explained
def shard(
    step: S,
    mesh: Mesh,
    plan: Any = "replicate",
    reduce: Literal["fast", "canonical"] = "fast",
    sync_batchnorm: bool = False,
) -> S:
    """The same step on the processes of `mesh`, which train together.

    Each process runs the same program, and is given the same batches. It computes the gradients of
    its part of each; their weighted mean over all ranks is what the rest of the step sees. So what
    comes after the gradients (`fl.amp`, clipping, the optimizer, `fl.ema`) does the same on each.

    `k` ranks with ``fl.accumulate(m)`` are one process with ``fl.accumulate(k * m)``: the same
    micro-batches with the same random numbers. Buffers such as BatchNorm's are merged by weight;
    with `sync_batchnorm` there is nothing to merge.

    Plans:

    - ``"replicate"``: every rank has the whole state.
    - ``"zero2"``: parameters, and what the optimizer and the averages keep for each of their
      values, are divided among the ranks. A step gathers the parameters, and reduces the gradients
      into pieces; it moves as much as ``"replicate"`` (ZeRO; Rajbhandari et al., 2020).
    - ``"zero3"``: as ``"zero2"``, but each parameter is gathered where the model uses it, and again
      in the backward pass, which reduces its gradient at once: no rank ever has all parameters, or
      all gradients. It moves half as much again, and with ``fl.accumulate(m)`` all of that `m`
      times. All ranks have to use the same parameters in the same order.
    - ``"tensor"``, on a mesh with that axis: its ranks share one model, each has a slice of the
      weights of attention and feed-forward layers, found by the usual names, and computes their
      part of it (Shoeybi et al., 2019). Or patterns: ``{"*.up.weight": 0, "*.down.weight": 1}``
      gives for parameters the dimension along which they are cut. With a second plan for the axis
      `data`: ``("zero2", "tensor")``. Eager, and each size must divide evenly.

    Args:
        step: A step or a gradient stage.
        mesh: From `fl.mesh`.
        plan: How tensors are placed.
        reduce: ``"fast"`` sums the gradients of all ranks at once; ``"canonical"`` merges the
            micro-batches of ``fl.accumulate(k)``, `k` on all ranks together, one by one in their
            order: the same bits on any number of ranks, for more communication.
        sync_batchnorm: Normalize by the examples of all ranks in `nn.BatchNorm`, `nn.SyncBatchNorm`
            and whatever calls `F.batch_norm`, so that `k` ranks with ``fl.accumulate(m)`` are one
            process with ``fl.accumulate(m)``: each micro-batch is divided among all ranks. It costs
            an exchange of each norm in each pass. All ranks have to compute the same norms in the
            same order.

    Raises:
        TypeError: `step` is no stage, or `mesh` no mesh.
        ValueError: The step is sharded already; an unknown plan; a stage with memory where
            each rank works alone; `sync_batchnorm` with ``reduce="canonical"``, which computes each
            micro-batch by itself.

    >>> import torch, fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> step = shard(step, fl.mesh(), "zero2")
    >>> state, metrics = step(step.init(torch.nn.Linear(2, 1)), torch.ones(4, 2))
    >>> int(state.step)
    1
    """
    if not isinstance(step, Stage):
        raise TypeError(f"shard takes a step, such as fl.pipe(...); got {short(step)}.")
    if not isinstance(mesh, Mesh):
        raise TypeError(f"shard takes a mesh, such as fl.mesh(); got {short(mesh)}.")
    own, placements = plans_of(plan, mesh)
    if reduce not in ("fast", "canonical"):
        raise ValueError(f'reduce= is "fast" or "canonical", got {reduce!r}.')
    if sync_batchnorm and reduce == "canonical":
        raise ValueError(
            'With reduce="canonical" each micro-batch is computed by itself, on whatever rank; '
            "sync_batchnorm=True normalizes over those of several ranks, so that the result "
            "depends on their number. Take one of the two."
        )
    if (there := mesh_of(step)) is not None:
        raise ValueError(f"The step is sharded already, over {there}.")
    return _folded(
        step,
        functools.partial(
            Fold,
            mesh=mesh,
            plan=own,
            placements=placements,
            canonical=reduce == "canonical",
            sync_batchnorm=sync_batchnorm,
        ),
    )


def _folded(stage: Any, fold: Callable[..., Fold]) -> Any:
    """The stage with `fold` in place of its `Accumulate`, or around its innermost stage."""
    if isinstance(stage, Accumulate):
        return fold(stage.inner, stage.k)
    if isinstance(stage, Sequence):
        return dataclasses.replace(stage, parts=tuple([_folded(p, fold) for p in stage.parts]))
    inner = getattr(stage, "inner", None)
    if isinstance(inner, Stage):
        return dataclasses.replace(stage, inner=_folded(inner, fold))
    return fold(stage, 1)


def plans_of(plan: Any, mesh: Mesh) -> tuple[str, Any]:
    """A plan's name for `mesh.data`, and its placements for `mesh.tensor`.

    Raises:
        ValueError: There is no such plan, or it is not for this mesh.
    """
    own, cut = plan if isinstance(plan, tuple) and len(plan) == 2 else (plan, None)
    if own == "tensor" or isinstance(own, Mapping):
        own, cut = "replicate", own
    if own not in PLANS or not (cut is None or cut == "tensor" or isinstance(cut, Mapping)):
        raise ValueError(
            f"There is no plan {plan!r}; there are: {', '.join(PLANS)}, tensor; patterns of names "
            'of parameters, each with the dimension to cut, {"*.up.weight": 0}; and both for a '
            'mesh with two axes, ("zero2", "tensor").'
        )
    if cut is None and mesh.tensor > 1:
        raise ValueError(
            f"The plan {plan!r} does not say how the {mesh.tensor} ranks of {mesh} share a model: "
            f'("{own}", "tensor"), or with patterns in place of "tensor".'
        )
    if cut is not None and mesh.tensor == 1 < mesh.data:
        raise ValueError(
            f"The plan {plan!r} is for ranks that share a model, and {mesh} has none: "
            f"fl.mesh(tensor={mesh.data}), or with both axes fl.mesh(data=..., tensor=...)."
        )
    if cut is not None and own == "zero3":
        raise ValueError(
            'The plan "zero3" is not for models that ranks share: take ("zero2", "tensor").'
        )
    return own, tuple(cut.items()) if isinstance(cut, Mapping) else cut


@explained
def place(state: State, mesh: Mesh, plan: Any = "replicate") -> State:
    """Divide a state's tensors among the ranks of `mesh`, as `plan` says.

    ``step.init(...)`` of a sharded step does so by itself. Every rank calls it, with the whole
    state or with one that is divided already.

    Args:
        state: The state.
        mesh: From `fl.mesh`.
        plan: As in `fl.shard`.

    >>> import torch, fnloop as fl
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(torch.nn.Linear(2, 1))
    >>> fl.gather(place(state, fl.mesh(), "zero2")) == state
    True
    """
    own, placements = plans_of(plan, mesh)
    state, dims = whole_state(state), None
    if mesh.tensor > 1:
        chosen = None if placements == "tensor" else dict(placements)
        dims = dims_of(state, chosen, mesh.tensor)
    return place_state(state, mesh, PLANS[own], dims)


@explained
def gather(state: State) -> State:
    """The state as one process has it, on every rank. All ranks must call it.

    Args:
        state: A state that may be divided among ranks.

    >>> import torch, fnloop as fl
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(torch.nn.Linear(2, 1))
    >>> gather(state) is state
    True
    """
    return whole_state(state)

"""``shard``: the same step on many processes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from fnloop.dist.mesh import Mesh
from fnloop.names.keywords import explained
from fnloop.stages.accumulate import Accumulate
from fnloop.stages.base import Stage, mesh_of
from fnloop.stages.fold import PLANS, Fold
from fnloop.trees.show import short
from fnloop.values.placing import place_state, whole_state
from fnloop.values.state import State

S = TypeVar("S", bound=Stage)


@explained
def shard(
    step: S,
    mesh: Mesh,
    plan: str = "replicate",
    reduce: Literal["fast", "canonical"] = "fast",
) -> S:
    """The same step on the processes of `mesh`, which train together.

    Each process runs the same program, and is given the same batches. It computes the gradients of
    its part of each; their weighted mean over all ranks is what the rest of the step sees. So what
    comes after the gradients (`fl.amp`, clipping, the optimizer, `fl.ema`) does the same on each.

    `k` ranks with ``fl.accumulate(m)`` are one process with ``fl.accumulate(k * m)``: the same
    micro-batches with the same random numbers. Buffers such as BatchNorm's are merged by weight.

    Plans:

    - ``"replicate"``: every rank has the whole state.
    - ``"zero2"``: parameters, and what the optimizer and the averages keep for each of their
      values, are divided among the ranks. A step gathers the parameters, and reduces the gradients
      into pieces; it moves as much as ``"replicate"`` (ZeRO; Rajbhandari et al., 2020).

    - ``"zero3"``: as ``"zero2"``, but each parameter is gathered where the model uses it, and again
      in the backward pass, which reduces its gradient at once: no rank ever has all parameters, or
      all gradients. It moves half as much again, and with ``fl.accumulate(m)`` all of that `m`
      times. All ranks have to use the same parameters in the same order.

    Args:
        step: A step or a gradient stage.
        mesh: From `fl.mesh`.
        plan: How tensors are placed.
        reduce: ``"fast"`` sums the gradients of all ranks at once; ``"canonical"`` merges the
            micro-batches of ``fl.accumulate(k)``, `k` on all ranks together, one by one in their
            order: the same bits on any number of ranks, for more communication.

    Raises:
        TypeError: `step` is no stage, or `mesh` no mesh.
        ValueError: The step is sharded already; an unknown plan; a stage with memory where
            each rank works alone.

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
    if plan not in PLANS:
        raise ValueError(f"There is no plan {plan!r}; there are: {', '.join(PLANS)}.")
    if reduce not in ("fast", "canonical"):
        raise ValueError(f'reduce= is "fast" or "canonical", got {reduce!r}.')
    if (there := mesh_of(step)) is not None:
        raise ValueError(f"The step is sharded already, over {there}.")
    return _folded(step, mesh, plan, reduce == "canonical")


def _folded(stage: Any, mesh: Mesh, plan: str, canonical: bool) -> Any:
    """The stage with `Fold` in place of its `Accumulate`, or around its innermost stage."""
    if isinstance(stage, Accumulate):
        return Fold(stage.inner, stage.k, mesh, plan, canonical)
    inner = getattr(stage, "inner", None)
    if isinstance(inner, Stage):
        return dataclasses.replace(stage, inner=_folded(inner, mesh, plan, canonical))
    return Fold(stage, 1, mesh, plan, canonical)


@explained
def place(state: State, mesh: Mesh, plan: str = "replicate") -> State:
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
    if plan not in PLANS:
        raise ValueError(f"There is no plan {plan!r}; there are: {', '.join(PLANS)}.")
    return place_state(state, mesh) if PLANS[plan] else whole_state(state)


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

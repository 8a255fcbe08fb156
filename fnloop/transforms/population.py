"""``ensemble`` and ``sweep``: many runs of one step, as one step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.named_numbers import full_name
from fnloop.transforms.population_stage import Population
from fnloop.trees.show import short
from fnloop.values.counts import as_count


@explained
def ensemble(
    step: Any = None,
    n: int | None = None,
    mode: str = "vmap",
    chunk: int | None = None,
    batches: str = "same",
) -> Any:
    """`n` runs of a step from different seeds, as one step.

    It is a training step like any other: ``fl.run``, ``fl.fit`` and ``fl.compile`` take it. The
    state has a leading dimension for the members on every leaf but the cursor, and each metric has
    `n` values. Members read the same batches, and each draws its own random numbers: those of a run
    alone, to the bit. A bad gradient skips the step of its own member only.

    Args:
        step: A training step that is not compiled; compile what this returns. An ensemble of a
            sweep has `n` members for each of its values.
        n: How many members.
        mode: ``"vmap"`` computes all members at once; ``"loop"`` one after the other, for steps
            that cannot be vmapped, such as those with `fl.optim.from_torch`.
        chunk: Vmap so many members at a time, where memory is short; default all. The same numbers
            to rounding.
        batches: ``"same"`` batch for all members; or ``"own"``: the batch is a tuple, list or dict
            with one for each member, as `fl.data.together` gives it. Under vmap they have the same
            structure and shapes.

    Raises:
        TypeError: `step` is not a training step.
        ValueError: `n` or `chunk` is not positive, or `mode` or `batches` is neither.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = ensemble(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), 3)
    >>> state = step.init(lambda: torch.nn.Linear(2, 1))
    >>> state, metrics = step(state, torch.ones(4, 2))
    >>> state.params["weight"].shape, metrics["loss"].value().shape
    (torch.Size([3, 1, 2]), torch.Size([3]))
    """
    if step is None:
        return functools.partial(ensemble, n=n, mode=mode, chunk=chunk, batches=batches)
    n = as_count(n, "ensemble(n=...)", 1)
    step = _as_population(step, mode, chunk, batches)
    apart = max(step.seeds) + 1
    seeds = tuple([own + i * apart for i in range(n) for own in step.seeds])
    values = {name: value.repeat(n) for name, value in step.values.items()}
    return dataclasses.replace(step, values=values, seeds=seeds)


@explained
def sweep(
    step: Any,
    values: Mapping[str, Any],
    mode: str = "vmap",
    chunk: int | None = None,
    batches: str = "same",
) -> Any:
    """A run of a step for each value of some hyperparameters, as one step.

    As `ensemble`, but for members that differ in hyperparameters and have the same seed. A sweep of
    a sweep is the grid of both, and a sweep of an ensemble has each value with each seed.

    Args:
        step: A training step that is not compiled; compile what this returns.
        values: Hyperparameters by name, with a value for each member. A name is that of the stage
            or optimizer and its field, such as ``"ema.decay"``, and for a schedule the schedule's
            field too: ``"adamw.lr.peak"``. Parts that are not needed to tell it from others may be
            left out. With several names, members have the values at the same place of each.
        mode, chunk, batches: As for `ensemble`.

    Raises:
        TypeError: `step` is not a training step.
        ValueError: A name fits no number of the step, or several, or an int, which is a part of its
            structure; or there are different numbers of values.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(fl.schedules.cosine(0.1, steps=9))))
    >>> many = sweep(step, {"adamw.lr.peak": [0.1, 0.2, 0.4], "weight_decay": [0.0, 0.0, 0.1]})
    >>> state, metrics = many(many.init(torch.nn.Linear(2, 1)), torch.ones(4, 2))
    >>> metrics["adamw.lr"].value().tolist(), metrics["adamw.weight_decay"].value().tolist()
    ([0.1, 0.2, 0.4], [0.0, 0.0, 0.1])
    """
    step = _as_population(step, mode, chunk, batches)
    rows: dict[str, Tensor] = {}
    for name, given in values.items():
        try:
            row = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"sweep: {name!r} takes a list of numbers, got {short(given)}."
            ) from None
        if row.ndim != 1 or not len(row):
            raise ValueError(f"sweep: {name!r} takes a list of numbers, got {short(given)}.")
        rows[full_name(step.inner, name, "sweep")] = row
    sizes = {len(row) for row in rows.values()}
    if len(sizes) != 1:
        told = ", ".join(f"{name!r} has {len(row)}" for name, row in rows.items())
        raise ValueError(
            f"sweep takes as many values of each hyperparameter, at least of one; {told or 'none'}."
            " For all combinations, sweep one after the other: "
            'fl.sweep(fl.sweep(step, {"adamw.lr": ...}), {"ema.decay": ...}).'
        )
    n = sizes.pop()
    old = {name: value.repeat_interleave(n) for name, value in step.values.items()}
    new = {name: row.repeat(step.n) for name, row in rows.items()}
    seeds = tuple([own for own in step.seeds for _ in range(n)])
    return dataclasses.replace(step, values={**old, **new}, seeds=seeds)


def _as_population(step: Any, mode: str, chunk: int | None, batches: str) -> Population:
    """The step as a population; one that is there keeps what is not said otherwise."""
    usual = {"mode": "vmap", "chunk": None, "batches": "same"}
    said: dict[str, Any] = {"mode": mode, "chunk": chunk, "batches": batches}
    others = {name: value for name, value in said.items() if value != usual[name]}
    if not isinstance(step, Population):
        return Population(step, {}, (0,), **others)
    return dataclasses.replace(step, **others) if others else step

"""``halving``: successive halving of a population."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fnloop.loop.checks import check_slots
from fnloop.loop.fit import fit
from fnloop.loop.history import History
from fnloop.loop.validate import validate
from fnloop.names.keywords import explained
from fnloop.store.checkpoint import checkpoint
from fnloop.store.files import as_path
from fnloop.store.folders import latest
from fnloop.store.load import load
from fnloop.trees.show import short
from fnloop.tuning.halving_result import Halving, Rung, by_score, sizes
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.merging import find
from fnloop.values.monitored import check_mode, one_number
from fnloop.values.stacked import chosen, member, members_of
from fnloop.values.state import State


@explained
def halving(
    step: Any,
    states: State,
    data: Any,
    validation: validate,
    monitor: str = "val/loss",
    mode: str = "min",
    rungs: Sequence[int] | None = None,
    budget: int | None = None,
    eta: int = 3,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Halving:
    """Train many members a little, the better ones longer, and the best to the end.

    Successive halving (Jamieson & Talwalkar, 2016, "Non-stochastic best arm identification and
    hyperparameter optimization"): after each rung the best ``1 / eta`` of the members go on from
    their states, which are those of runs that never stopped. `states` stay as they are.

    Args:
        step: From `fl.sweep` or `fl.ensemble`, compiled or not; compiled, each rung takes a graph.
        states: From ``step.init(model)``, or of a run.
        data: Whatever `fl.run` takes.
        validation: What to compare members by: ``fl.validate(loss, val_data)``.
        monitor: Name of the metric that it adds.
        mode: ``"min"`` (lower is better) or ``"max"``.
        rungs: Batches that a member has trained for at the end of each rung, counted from `states`:
            ``(30, 90, 270)``. Those of Hyperband (Li et al., 2018) grow by a factor of `eta`.
        budget: In place of `rungs`, batches of all members together, of which each rung has an
            equal part, until one member is left.
        eta: A rung has ``eta`` times as many members as the next.
        folder: To resume from: each rung is a run with a checkpoint in a folder of its own there.
            Called again, it takes the rungs that are done as they are, and goes on to the same
            bits.
        progress: As in `fl.fit`.

    Returns:
        A `Halving`, with ``best``, ``state``, ``step``, ``table()`` and ``plot()``.

    Raises:
        TypeError: `step` is not one of a population, `validation` is none, or both or none of
            `rungs` and `budget` are given.
        ValueError: `rungs` do not grow, `budget` is too small, or there is no such metric.

    >>> import fnloop as fl
    >>> x = torch.linspace(-1, 1, 16)[:, None]
    >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> rates = fl.sweep(step, {"sgd.lr": [0.01, 0.03, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9]})
    >>> states = rates.init(lambda: torch.nn.Linear(1, 1), seed=0)
    >>> found = halving(rates, states, [(x, 3 * x)], fl.validate(loss, [(x, 3 * x)]), rungs=(5, 15))
    >>> found.cost, found.whole_cost, len(found.rungs[1].members), int(found.state.step)
    (75, 135, 3, 15)
    """
    check_mode(mode, monitor, "halving")
    inner: Any = getattr(step, "uncompiled", step)
    n = members_of(states)
    if not hasattr(inner, "some") or n is None:
        raise TypeError(
            "halving takes a step of many runs and its states: many = fl.sweep(step, "
            '{"adamw.lr": [1e-4, 1e-3, 1e-2]}), states = many.init(model); got '
            f"{short(step)} and the state of {'a single run' if n is None else f'{n} members'}."
        )
    if not callable(validation):
        raise TypeError(
            "halving compares members by a validation, in place of which it was given "
            f"{short(validation)}: fl.tuning.halving(many, states, data, "
            'fl.validate(loss, val_data), monitor="val/loss", rungs=(10, 30)).'
        )
    check_slots(step, states)
    eta = as_count(eta, "halving(eta=...)", 2)
    counts, plan = _planned(n, eta, rungs, budget)
    begin, members, done = Cursor.of(states.cursor).count, list(range(n)), list[Rung]()
    for batches, size in zip(plan, counts, strict=True):
        if done:  # of the last rung, the best
            kept = sorted(by_score(done[-1].scores, mode)[:size])
            members = [members[i] for i in kept]
            states = chosen(states, kept)
        some = inner.some(members)
        part = some if step is inner else dataclasses.replace(step, inner=some)
        states = _trained(part, some, states, data, begin + batches, members, folder, progress)
        done.append(Rung(batches, tuple(members), _scores(states, validation, monitor)))
    position = by_score(done[-1].scores, mode)[0]
    values = {name: tuple(value.tolist()) for name, value in inner.values.items()}
    best = members[position]
    state, own = member(states, position), inner.member(best)
    return Halving(monitor, mode, values, tuple(done), state, own)


def _planned(
    n: int, eta: int, rungs: Sequence[int] | None, budget: int | None
) -> tuple[list[int], list[int]]:
    """Members in each rung, and the batches that each has trained for at its end."""
    if (rungs is None) == (budget is None):
        raise TypeError(
            "halving takes either rungs= (batches of a member at the end of each, such as "
            f"({eta**2 * 10}, {eta**3 * 10})) or budget= (batches of all members together)."
        )
    if rungs is not None:
        plan = [as_count(each, "halving(rungs=...)", 1) for each in rungs]
        if not plan or plan != sorted({*plan}):
            raise ValueError(
                f"halving(rungs=...) takes growing numbers of batches, each counted from the "
                f"beginning: (10, 30, 90); got {short(rungs)}."
            )
        return sizes(n, eta, len(plan)), plan
    counts = sizes(n, eta)
    total = as_count(budget, "halving(budget=...)", 1)
    parts = [total // (size * len(counts)) for size in counts]
    if not parts[0]:
        raise ValueError(
            f"halving(budget={total}) is less than a batch for each of {n} members in the first of "
            f"{len(counts)} rungs: it takes at least {n * len(counts)}."
        )
    return counts, [sum(parts[: k + 1]) for k in range(len(parts))]


def _trained(
    step: Any,
    some: Any,
    states: State,
    data: Any,
    count: int,
    members: Sequence[int],
    folder: str | Path | None,
    progress: bool | None,
) -> State:
    """The states after a rung, which ends when `count` batches are drawn."""
    if folder is None:
        left = count - Cursor.of(states.cursor).count
        return _whole(*fit(step, states, data, steps=left, progress=progress), count)
    # Other members, values or lengths are another rung, with a folder of its own.
    told = repr((count, list(members), {n: v.tolist() for n, v in some.values.items()}))
    own = as_path(folder) / f"rung-{count}-{zlib.crc32(told.encode()):08x}"
    if latest(own) is not None:
        there = load(own, like=states)
        if Cursor.of(there.cursor).count == count:
            return there
    saving = [checkpoint(own, keep=1)]
    options: dict[str, Any] = {"callbacks": saving, "resume": own, "progress": progress}
    return _whole(*fit(step, states, data, steps=count, **options), count)


def _whole(states: State, history: History, count: int) -> State:
    """The states of a run that has come to its end."""
    there = Cursor.of(states.cursor).count
    if history.status == "interrupted":
        raise KeyboardInterrupt(
            f"halving was interrupted by {history.reason}, after {there} of {count} batches of a "
            "rung. With folder= it can be called again, and goes on from there."
        )
    if there < count:
        raise ValueError(
            f"The data ended after {there} of {count} batches of a rung, and halving reads on from "
            "rung to rung: give it data that starts anew, such as fl.Batches."
        )
    return states


def _scores(states: State, validation: Any, monitor: str) -> tuple[float, ...]:
    _, metrics = validation(states, {})
    found = find(metrics, monitor)
    if found is None:
        raise ValueError(
            f"halving compares members by {monitor!r}, which {validation.describe()} does not add. "
            f"It adds: {', '.join(metrics)}."
        )
    found = one_number(found, monitor, "halving", members_of(states))
    value = torch.as_tensor(found, dtype=torch.float64).reshape(-1)
    if len(value) != members_of(states):
        raise ValueError(
            f"halving compares members by {monitor!r}, which has {len(value)} values for "
            f"{members_of(states)} members."
        )
    return tuple(value.tolist())

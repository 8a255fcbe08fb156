"""``ensemble`` and ``sweep``: many runs of one step, as one step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.base import Kind, StepStage
from fnloop.stages.named_numbers import full_name, with_settings
from fnloop.trees.nodes import static, tree, tree_map
from fnloop.trees.show import short
from fnloop.values.choice import select
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.stacked import (
    ACTIVE,
    SLOT,
    batches_of,
    each_member,
    members_of,
    side_by_side,
    stack,
    stacked_batches,
    without_mark,
)
from fnloop.values.state import State


@tree
class Population(StepStage):
    """The stage that `ensemble` and `sweep` make.

    Attributes:
        inner: The step of one member.
        values: Hyperparameters by name, float64[n]: a value for each member.
        seeds: What each member adds to the seed of `init`.
        mode: ``"vmap"``, or ``"loop"`` for one member after the other.
        chunk: How many members are vmapped at a time; None for all.
        batches: ``"same"`` for all, or ``"own"``: a batch for each member.
    """

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "population"
    inner: Any
    values: dict[str, Tensor]
    seeds: tuple[int, ...] = static()
    mode: str = "vmap"
    chunk: int | None = None
    batches: str = "same"
    name: str = SLOT

    def __post_init__(self) -> None:
        if self.mode not in ("vmap", "loop"):
            raise ValueError(f'A population has mode="vmap" or mode="loop", got {self.mode!r}.')
        if self.chunk is not None:
            object.__setattr__(self, "chunk", as_count(self.chunk, "chunk=", 1))
            if self.mode == "loop":
                raise ValueError('chunk= is for mode="vmap"; mode="loop" computes one at a time.')
        if self.batches not in ("same", "own"):
            raise ValueError(
                f'A population has batches="same" or batches="own", got {self.batches!r}.'
            )
        super().__post_init__()

    @property
    def n(self) -> int:
        """How many members it has."""
        return len(self.seeds)

    def member(self, i: int) -> Any:
        """The step of member `i`, by itself."""
        return with_settings(self.inner, {name: float(v[i]) for name, v in self.values.items()})

    def init(self, model: Any, seed: int = 0) -> State:
        """Make the state of all members: each leaf but the cursor has a leading dimension.

        Member `i` begins as ``step.init(model, seed + i)`` does. The members of a sweep have the
        same seed, and differ in their hyperparameters alone.

        Args:
            model: A function that builds a model, so that members of an ensemble begin with weights
                of their own; a model, with whose weights all begin; a state of this population,
                which gets the memory that is missing; the state of a single run, with which all go
                on; or a list of such states, one for each member.
            seed: Of the first member.

        Raises:
            ValueError: The state has another number of members.
        """
        if isinstance(model, (list, tuple)):
            model = stack(model)
        given = each_member(model) if isinstance(model, State) else []
        if len(given) > 1 and len(given) != self.n:
            raise ValueError(
                f"The state has {len(given)} members, and {self.describe()} has {self.n}. "
                "Of some of them: step.init([fl.member(state, i) for i in ...])."
            )
        begun: list[State] = []
        for i, own in enumerate(self.seeds):
            start = given[i % len(given)] if given else model
            values = {name: value[i] for name, value in self.values.items()}
            # With tensors: a momentum that is zero for one has memory for the others.
            begun.append(with_settings(self.inner, values).init(start, seed + own))
        if len(given) == 1:  # random numbers of their own from here on
            begun = [own.replace(key=own.key + s) for own, s in zip(begun, self.seeds, strict=True)]
        state = stack(begun)
        mark = model.slots.get(SLOT) if isinstance(model, State) else None
        active = torch.ones(self.n, dtype=torch.bool, device=state.step.device)
        return state.put(SLOT, mark or {ACTIVE: active})

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        mark, before = state.slots.get(SLOT), without_mark(state)
        if mark is None or members_of(state) != self.n:
            raise ValueError(
                f"{self.describe()} takes a state of {self.n} members, from its own init: "
                f"state = step.init(model). This one is of {members_of(state) or 'a single run'}."
            )
        call = self._vmapped if self.mode == "vmap" else self._looped
        after, metrics = call(before, x)
        if look(mark[ACTIVE].all()) is not True:
            after = _of_active(mark[ACTIVE], after, before)
        return after.put(SLOT, mark), metrics

    def _vmapped(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        cursor, context = state.cursor, state.context

        def one(own: State, batch: Any, values: dict[str, Tensor]) -> Any:
            step = with_settings(self.inner, values) if values else self.inner
            after, metrics = step(own.replace(cursor=cursor, context=context), batch)
            return after.replace(cursor=()), metrics

        own = self.batches == "own"
        many: Any = torch.func.vmap(
            one, (0, 0 if own else None, 0), randomness="different", chunk_size=self.chunk
        )
        batch = stacked_batches(batches_of(x, self.n)) if own else x
        after, metrics = many(state.replace(cursor=()), batch, self.values)
        return after.replace(cursor=cursor), metrics

    def _looped(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        batches = batches_of(x, self.n) if self.batches == "own" else [x] * self.n
        members = enumerate(zip(each_member(state), batches, strict=True))
        results = [self.member(i)(own, batch) for i, (own, batch) in members]
        metrics = side_by_side([metrics for _, metrics in results], state)
        return stack([after for after, _ in results]).replace(cursor=state.cursor), metrics

    def describe(self) -> str:
        swept = ", ".join(f"{name!r}: {short(value)}" for name, value in self.values.items())
        mode = "" if self.mode == "vmap" else f", mode={self.mode!r}"
        mode += "" if self.chunk is None else f", chunk={self.chunk}"
        mode += "" if self.batches == "same" else f", batches={self.batches!r}"
        return f"sweep({{{swept}}}{mode})" if swept else f"ensemble({self.n}{mode})"


def _of_active(active: Tensor, after: State, before: State) -> State:
    """Of the members that are active what is after the step, of the others what was before it."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return select(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    cursor = after.cursor
    chosen = tree_map(choose, after.replace(cursor=()), before.replace(cursor=()))
    return chosen.replace(cursor=cursor)


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
        row = torch.as_tensor(given, dtype=torch.float64)
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

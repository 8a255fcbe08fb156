"""``ensemble`` and ``sweep``: many runs of one step, as one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.base import Kind, StepStage
from fnloop.stages.settings import full_name, with_settings
from fnloop.trees.nodes import static, tree, tree_map
from fnloop.trees.show import short
from fnloop.values.choice import select
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.population import ACTIVE, SLOT, each_member, members_of, stack
from fnloop.values.state import State


@tree
class Population(StepStage):
    """The stage that `ensemble` and `sweep` make.

    Attributes:
        inner: The step of one member.
        values: Of hyperparameters by name, float64[n]: a value for each member.
        seeds: What each member adds to the seed of `init`.
    """

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "population"
    inner: Any
    values: dict[str, Tensor]
    seeds: tuple[int, ...] = static()
    name: str = SLOT

    @property
    def n(self) -> int:
        """How many members it has."""
        return len(self.seeds)

    def member(self, i: int) -> Any:
        """The step of member `i`, with its hyperparameters as numbers."""
        return with_settings(self.inner, {name: float(v[i]) for name, v in self.values.items()})

    def init(self, model: Any, seed: int = 0) -> State:
        """Make the state of all members: each leaf but the cursor has a leading dimension.

        Member `i` begins as ``step.init(model, seed + i)`` does, by itself.

        Args:
            model: A function that builds a model, so that members differ in their weights; a model,
                which all of them begin with; or a state: of a population, which then gets the
                memory that is missing, or of a single run, with which all go on.
            seed: Of the first member.

        Raises:
            ValueError: The state has another number of members.
        """
        given = each_member(model) if isinstance(model, State) else []
        if len(given) > 1 and len(given) != self.n:
            raise ValueError(f"The state has {len(given)} members, and the step {self.n}.")
        begun = [
            self.member(i).init(given[i % len(given)] if given else model, seed + self.seeds[i])
            for i in range(self.n)
        ]
        if given and members_of(model) is None:  # they would draw the same numbers
            begun = [own.replace(key=own.key + s) for own, s in zip(begun, self.seeds, strict=True)]
        state = stack(begun)
        kept = model.slots.get(SLOT) if isinstance(model, State) else None
        active = torch.ones(self.n, dtype=torch.bool, device=state.step.device)
        return state.put(SLOT, kept or {ACTIVE: active})

    def init_state(self, state: State) -> dict[str, Tensor]:
        raise NotImplementedError("init is all of it")

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        cursor, context, own = state.cursor, state.context, state.slots.get(SLOT)
        if own is None or members_of(state) != self.n:
            raise ValueError(
                f"{self.describe()} takes the state of {self.n} members, from its own init: "
                f"state = step.init(model). This one has {members_of(state) or 'none'}."
            )

        def one(alone: State, batch: Any, values: dict[str, Tensor]) -> Any:
            step = with_settings(self.inner, values) if values else self.inner
            after, metrics = step(alone.replace(cursor=cursor, context=context), batch)
            return after.replace(cursor=()), metrics

        slots = {name: memory for name, memory in state.slots.items() if name != SLOT}
        before = state.replace(cursor=(), slots=slots)
        many: Any = torch.func.vmap(one, in_dims=(0, None, 0), randomness="different")
        after, metrics = many(before, x, self.values)
        if look(own[ACTIVE].all()) is not True:
            after = _frozen(own[ACTIVE], after, before)
        return after.replace(cursor=cursor, slots={**after.slots, SLOT: own}), metrics

    def describe(self) -> str:
        swept = {name: short(values) for name, values in self.values.items()}
        return f"sweep({swept})" if swept else f"ensemble({self.n})"


def _frozen(active: Tensor, after: State, before: State) -> State:
    """The members that are active after the step, the others as they were before it."""

    def choose(new: Any, old: Any) -> Any:
        return select(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return tree_map(choose, after, before)


@explained
def ensemble(step: Any = None, n: int = 0) -> Any:
    """`n` runs of a step from different seeds, as one step.

    Args:
        step: A training step; in a pipe it is left out: ``fl.pipe(..., fl.ensemble(n=8))``.
        n: How many members.
    """
    n = as_count(n, "ensemble(n=...)", 1)
    step = step if isinstance(step, Population) else Population(step, {}, (0,))
    seeds = [own + i * (max(step.seeds) + 1) for i in range(n) for own in step.seeds]
    values = {name: value.repeat(n) for name, value in step.values.items()}
    return dataclasses.replace(step, values=values, seeds=tuple(seeds))


@explained
def sweep(step: Any, values: Mapping[str, Any]) -> Any:
    """A run for each value of some hyperparameters, as one step."""
    step = step if isinstance(step, Population) else Population(step, {}, (0,))
    rows: dict[str, Tensor] = {}
    for name, given in values.items():
        row = torch.as_tensor(given, dtype=torch.float64)
        rows[full_name(step.inner, name, "sweep")] = row
    sizes = {name: len(row) for name, row in rows.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"sweep: the values differ in number: {sizes}.")
    n = next(iter(sizes.values()))
    old = {name: value.repeat_interleave(n) for name, value in step.values.items()}
    new = {name: row.repeat(step.n) for name, row in rows.items()}
    seeds = tuple([seed for seed in step.seeds for _ in range(n)])
    return dataclasses.replace(step, values={**old, **new}, seeds=seeds)

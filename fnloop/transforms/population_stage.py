"""``Population``: the stage of many runs as one step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch.inference import outside_inference
from fnloop._torch.tracing import opaque, recording
from fnloop.stages.base import Kind, Stage, StepStage
from fnloop.stages.named_numbers import with_settings
from fnloop.transforms.vmap_errors import explain
from fnloop.trees.nodes import static, tree, tree_map
from fnloop.trees.show import numbers_text, short
from fnloop.values.choice import select_members
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.member_metrics import of_members
from fnloop.values.stacked import (
    ACTIVE,
    SLOT,
    as_member,
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
        """The step of member `i`, by itself.

        Raises:
            IndexError: There is no such member.
            TypeError: `i` is not a whole number.
        """
        i = as_member(i, self.n)
        return with_settings(self.inner, {name: look(v[i]) for name, v in self.values.items()})

    def batch_of(self, x: Any, i: int) -> Any:
        """Of a batch of this step, the part that member `i` reads."""
        return batches_of(x, self.n)[i] if self.batches == "own" else x

    def some(self, which: Sequence[int]) -> Population:
        """The step of some members, in this order."""
        which = [as_member(i, self.n) for i in which]
        values = {name: value[which] for name, value in self.values.items()}
        seeds = tuple([self.seeds[i] for i in which])
        return dataclasses.replace(self, values=values, seeds=seeds)

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
        with outside_inference():
            return self._init(model, seed)

    def _init(self, model: Any, seed: int) -> State:
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
        if len(given) == 1 < self.n:  # random numbers of their own from here on
            begun = [own.replace(key=own.key + s) for own, s in zip(begun, self.seeds, strict=True)]
        state = stack(begun)
        mark = model.slots.get(SLOT) if isinstance(model, State) else None
        active = torch.ones(self.n, dtype=torch.bool, device=state.step.device)
        return state.put(SLOT, mark or {ACTIVE: active})

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        mark, before = state.slots.get(SLOT), self._read(without_mark(state))
        if mark is None or members_of(state) != self.n:
            raise ValueError(self._other(members_of(state)))
        call = self._vmapped if self.mode == "vmap" else self._looped
        after, metrics = call(before, x)
        metrics = of_members(metrics)
        if look(mark[ACTIVE].all()) is not True:
            after = _of_active(mark[ACTIVE], after, before)
        return after.replace(slots={**state.slots, **after.slots}), metrics

    def _other(self, n: int | None) -> str:
        """What is wrong with a state of `n` members, or of a single run."""
        if n is None:
            got = "This one is of a single run"
            what = "step.init(state) makes a population whose members all go on with it."
        elif n != self.n:
            got = f"This one is of {n}"
            what = "of some of them: step.init([fl.member(state, i) for i in ...])."
        else:
            got, what = f"This one has no slot {SLOT!r}", "step.init(state) adds it."
        return (
            f"{self.describe()} takes a state of {self.n} members, from its own init: "
            f"state = step.init(model). {got}; {what}"
        )

    def _read(self, state: State) -> State:
        """The state with the slots that the step uses: those of callbacks need not be by member."""
        stages = [*self.inner.stages()]
        if any([stage.reads_any_slot for stage in stages]):
            return state
        own = {stage.slot for stage in stages}
        return state.replace(slots={name: m for name, m in state.slots.items() if name in own})

    def _vmapped(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        cursor, context = state.cursor, state.context

        def one(own: State, batch: Any, values: dict[str, Tensor]) -> Any:
            step = with_settings(self.inner, values) if values else self.inner
            after, metrics = step(own.replace(cursor=cursor, context=context), batch)
            return after.replace(cursor=()), metrics

        own = self.batches == "own"
        many: Any = torch.func.vmap(one, (0, 0 if own else None, 0), randomness="different")
        batch = stacked_batches(batches_of(x, self.n)) if own else x
        given = state.replace(cursor=()), batch, self.values
        try:
            after, metrics = self._in_chunks(many, own, *given) if self.chunk else many(*given)
        except Exception as error:
            explain(error, self, state, x)
            raise
        return after.replace(cursor=cursor), metrics

    def _in_chunks(
        self, many: Any, own: bool, state: State, batch: Any, values: dict[str, Tensor]
    ) -> Any:
        results, size = list[Any](), self.chunk or self.n
        for begin in range(0, self.n, size):
            part = slice(begin, min(begin + size, self.n))
            cut = functools.partial(tree_map, operator.itemgetter(part))
            some = cut(state)
            with _apart(some, part):
                results.append(many(some, cut(batch) if own else batch, cut(values)))
        return tree_map(lambda *leaves: torch.cat(leaves), *results)

    def _looped(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        batches = batches_of(x, self.n) if self.batches == "own" else [x] * self.n
        results: list[Any] = []
        for i, (own, batch) in enumerate(zip(each_member(state), batches, strict=True)):
            with _apart(own, slice(i, i + 1)):
                results.append(self.member(i)(own, batch))
        metrics = side_by_side([metrics for _, metrics in results], state)
        return stack([after for after, _ in results]).replace(cursor=state.cursor), metrics

    def describe(self) -> str:
        swept = ", ".join(f"{name!r}: {_shown(value)}" for name, value in self.values.items())
        mode = "" if self.mode == "vmap" else f", mode={self.mode!r}"
        mode += "" if self.chunk is None else f", chunk={self.chunk}"
        mode += "" if self.batches == "same" else f", batches={self.batches!r}"
        return f"sweep({{{swept}}}{mode})" if swept else f"ensemble({self.n}{mode})"


def swept_values(step: Any) -> dict[str, list[float]]:
    """Of a sweep, compiled or not, the value of each member by hyperparameter; else nothing."""
    stages = step.stages() if isinstance(step, Stage) else ()
    for stage in stages:
        if isinstance(stage, Population):
            return {name: value.tolist() for name, value in stage.values.items()}
    return {}


def _shown(values: Any) -> str:
    """The numbers of a sweep; their dtype and shape where they have no values to be read."""
    readable = isinstance(values, Tensor) and values.ndim == 1 and not opaque()
    if not readable or values.is_meta:
        return short(values)
    return f"[{numbers_text(values.tolist())}]"


def _apart(state: State, members: slice) -> contextlib.AbstractContextManager[Any]:
    """Tells `compile`, which draws random numbers beforehand, whose are drawn in this block."""
    about = recording()
    return contextlib.nullcontext() if about is None else about.part(state, members)


def _of_active(active: Tensor, after: State, before: State) -> State:
    """Of the members that are active what is after the step, of the others what was before it."""
    cursor = after.cursor
    chosen = select_members(active, after.replace(cursor=()), before.replace(cursor=()))
    return chosen.replace(cursor=cursor)

"""The stages of a pipeline, with the memory of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.stages.base import GradStage, Stage
from fnloop.stages.sequence import Clock, Sequence
from fnloop.trees.show import short
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


class StageRow(NamedTuple):
    """A stage of the pipeline.

    Attributes:
        text: The stage, as it is written; after the name of its part, in an `fl.sequence`.
        slot: The name of its memory in the state; empty if it has none.
        values: How many numbers that holds; of all members, in a population.
        bytes: Of these; of whole tensors, where ranks divide them.
    """

    text: str
    slot: str
    values: int
    bytes: int


def stage_rows(step: Any, state: State) -> list[StageRow]:
    """The stages from the loss on, and then memory that the state has of others."""
    rows = list(_rows(step, state, ""))
    known = {row.slot for row in rows}
    rest = [name for name in state.slots if name not in known]
    return [*rows, *[StageRow("(a callback, or another step)", n, *held(state[n])) for n in rest]]


def _rows(step: Any, state: State, folder: str) -> Iterator[StageRow]:
    if not isinstance(step, Stage):
        yield StageRow(short(step), "", 0, 0)
        return
    inner = getattr(step, "inner", None)
    if isinstance(inner, Stage):
        yield from _rows(inner, state, folder)
        before = [id(part) for part in (*inner.stages(), step)]
        for part in step.stages():  # such as the rule of a guard
            if id(part) not in before:
                yield _row(part, folder + part.describe(), state)
    elif isinstance(step, Sequence):
        for turn in step.turns:
            yield from _rows(turn.step, state, turn.folder)
            yield _row(turn.clock, f"{turn.folder}(its steps)", state)
    if isinstance(step, GradStage) and step.loss is not None:
        yield StageRow(folder + short(step.loss), "", 0, 0)
    yield _row(step, folder + step.describe(), state)


def _row(stage: Stage | Clock, text: str, state: State) -> StageRow:
    slot = stage.slot or ""
    return StageRow(text, slot, *(held(state.slots[slot]) if slot in state.slots else (0, 0)))


def held(memory: Any) -> tuple[int, int]:
    """How many numbers are in memory of a state, and their bytes; of whole tensors."""
    if isinstance(memory, Tensors):
        memory = dict(memory.outlines())
    if isinstance(memory, dict):
        parts = [held(part) for part in memory.values()]
        return sum(values for values, _ in parts), sum(count for _, count in parts)
    if isinstance(memory, Tensor):
        return memory.numel(), memory.numel() * memory.element_size()
    return 0, 0

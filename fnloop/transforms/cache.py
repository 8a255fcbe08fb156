"""What a compiled step caches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import optree
from torch import Tensor

from fnloop.stages.base import Stage
from fnloop.transforms.outside import Outside
from fnloop.transforms.plan import Plans
from fnloop.transforms.program import Program
from fnloop.transforms.varying import Family
from fnloop.values.questions import Question, counts_of
from fnloop.values.state import State


class Cache:
    """The plans of a step's states, and its programs; and the step itself, as leaves.

    Attributes:
        step: The step's leaves and their structure.
        tensors: The leaves that are tensors.
        plans: See `Plans`.
        outside: See `Outside`.
        families: Programs for all sizes, by all but the sizes.
        graphs: Number of graphs so far.
        asked: All questions for whose answers there are graphs.
    """

    def __init__(self, step: Stage) -> None:
        flat: Any = optree.tree_flatten(step)  # pyright: ignore[reportArgumentType]
        self.step = flat
        self.tensors = [leaf for leaf in self.step[0] if isinstance(leaf, Tensor)]
        self.plans = Plans(step)
        self.outside = Outside(step)
        self._programs: dict[Any, Program | _Fork] = {}
        self.families: dict[Any, Family] = defaultdict(Family)
        self.graphs = 0
        self.asked: set[Question] = set()

    def look(self) -> None:
        """Count a call, and forget all programs if what they contain from outside is rebound."""
        if self.outside.is_rebound():
            self._programs.clear()
            self.families.clear()
            self.asked.clear()

    def find(self, key: Any, state: State) -> Program | None:
        """The program for `key`, all that is known of a call but its position."""
        found = self._programs.get(key)
        while isinstance(found, _Fork):
            found = found.ways.get(found.answer(state))
        return found

    def keep(self, key: Any, state: State, program: Program) -> None:
        """Let `find` find a program where its questions have the same answers."""
        ways, way = self._programs, key
        for question in program.asked:
            fork = ways.setdefault(way, _Fork(question, {}))
            assert isinstance(fork, _Fork)  # what it asks next depends on the answers before
            ways, way = fork.ways, fork.answer(state)
        ways[way] = program
        self.asked.update(program.asked)

    def answers(self, state: State) -> frozenset[tuple[Question, int]]:
        """The answers to all that was asked, other than no."""
        if not self.asked:
            return _NONE
        return frozenset([(q, a) for q in self.asked if (a := _answer(q, state))])


class _Fork(NamedTuple):
    """Programs by the answer to a question that the step asks first; or next."""

    question: Question
    ways: dict[Any, Any]

    def answer(self, state: State) -> int:
        return _answer(self.question, state)


def _answer(question: Question, state: State) -> int:
    # Members of a population that differ in it are refused by the stage.
    return question(counts_of(state, question.unit)[0])


_NONE: frozenset[tuple[Question, int]] = frozenset()

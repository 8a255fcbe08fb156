"""What a step asks of its position: the answers are Python's, and each has a graph of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from fnloop._torch.tracing import recording, unwrapped
from fnloop.values.state import State

Unit: TypeAlias = Literal["call", "epoch"]


class EveryNth(NamedTuple):
    """Whether the next call is a multiple of `n`."""

    n: int

    @property
    def unit(self) -> Unit:
        return "call"

    def __call__(self, count: int) -> bool:
        return (count + 1) % self.n == 0


class Passed(NamedTuple):
    """How many of some increasing counts have been reached."""

    counts: tuple[int, ...]
    unit: Unit

    def __call__(self, count: int) -> int:
        return bisect_right(self.counts, count)


Question: TypeAlias = EveryNth | Passed


def answer(state: State, question: Question, what: str) -> int:
    """The answer for the call that is given `state`.

    `fl.compile` makes a graph for each: calls and epochs are on the CPU and known before.

    Args:
        state: What a stage was called with.
        question: What to answer.
        what: What depends on it, for the message: ``"What is frozen changes"``.

    Raises:
        ValueError: The members of a population have different answers.
    """
    about = recording()
    if about is not None:
        counts = about.counts_for(question)
    else:
        counts = counts_of(state, question.unit)
    answers = {question(count) for count in counts}
    if len(answers) > 1:
        raise ValueError(
            f"{what}, and the members of this population have finished different numbers of "
            f"{question.unit}s, {list(counts)}. Bring them to the same count before they go on "
            "together."
        )
    return answers.pop()


Counts: TypeAlias = Mapping[Unit, Sequence[int]]


def counts_of(state: State, unit: Unit) -> Sequence[int]:
    """The calls made so far, or the epochs finished, of each member."""
    if unit == "call":
        return unwrapped(state.calls).reshape(-1).tolist()
    return unwrapped(state.cursor).reshape(-1, 3)[:, 0].tolist()


def all_counts(state: State) -> Counts:
    """The same by unit."""
    return {unit: counts_of(state, unit) for unit in get_args(Unit)}

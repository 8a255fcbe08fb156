"""The recording of a step: its random numbers, and checks of what it uses and changes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NoReturn

from torch import Tensor

from fnloop._torch.draws import Draws, RandomnessError
from fnloop._torch.tracing import recording_into, unwrapped
from fnloop.transforms.compile_errors import CompileError
from fnloop.values.questions import Counts, Question
from fnloop.values.state import State


class Recording:
    """One recording of a step.

    Args:
        draws: Where its random numbers come from.
        counts: Calls and epochs before it, of each member.

    Attributes:
        asked: Questions by whose answers the step does something else, in order.
        rounded: Whether its matrix products of float32 may be rounded to TF32.
    """

    def __init__(self, draws: Draws, counts: Counts) -> None:
        self.asked: list[Question] = []
        self.rounded = False
        self._draws, self._counts = draws, counts
        self._key: Tensor | None = None
        self._calls: Tensor | None = None

    @contextlib.contextmanager
    def of(self, state: State) -> Generator[None]:
        """Record this block, in which the step runs on `state`."""
        self._key, self._calls = state.key, state.calls
        with self._draws, recording_into(self):
            yield

    @contextlib.contextmanager
    def part(self, state: State, members: slice) -> Generator[None]:
        """Record this block, in which some members of a population run on `state` of theirs."""
        before = self._key, self._calls
        self._key, self._calls = state.key, state.calls
        try:
            with self._draws.of(members):
                yield
        finally:
            self._key, self._calls = before

    def counts_for(self, question: Question) -> Sequence[int]:
        """What `question` is about, of each member; the step depends on the answer."""
        if question not in self.asked:
            self.asked.append(question)
        return self._counts[question.unit]

    @contextlib.contextmanager
    def randomness(
        self, key: Tensor, calls: Tensor, position: tuple[int | str, ...]
    ) -> Generator[None]:
        """Random numbers in this block are a function of (key, calls, position)."""
        before = len(self._draws.found)
        with self._draws.block(position):
            yield
        if len(self._draws.found) > before and not (
            _is(key, self._key) and _is(calls, self._calls)
        ):
            raise RandomnessError(
                "random numbers are drawn after a stage has changed state.key or state.calls, "
                "and a compiled step draws them before it runs, from the key and the calls that "
                "it was given"
            )


def _is(tensor: Tensor, given: Any) -> bool:
    """Whether `tensor` is `given`, perhaps wrapped by a transform."""
    return unwrapped(tensor) is given


class Hidden:
    """Stands for a slot that no stage of the step owns; any use of it is an error."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        name = self.__dict__["_name"]
        raise CompileError(
            f"The step uses the slot {name!r}, which none of its stages owns; a compiled step "
            "sees only the memory of its own stages. Let the stage that needs it own it: a class "
            f'with a field name: str = "{name}" and a method init_state(state).'
        )

    __getattr__ = __getitem__ = __iter__ = __len__ = __contains__ = __bool__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __truediv__ = _refuse
    __setattr__ = __setitem__ = __call__ = __torch_function__ = _refuse


def check_after(before: State, after: State, known: set[str]) -> None:
    """Refuse a step that changes what it does not own."""
    if not isinstance(after, State):
        raise CompileError(f"The step returned {type(after).__name__} in place of a State.")
    if after.cursor is not before.cursor:
        raise CompileError("The step changes state.cursor, which only the loop moves.")
    if after.skeleton is not before.skeleton:
        raise CompileError("The step changes the model's skeleton, state.skeleton.")
    gone = set(before.slots) - set(after.slots)
    if gone:
        raise CompileError(f"The step takes the slot {min(gone)!r} out of the state.")
    for name, memory in after.slots.items():
        if name not in before.slots:
            raise CompileError(
                f"The step adds the slot {name!r} to the state as it runs. Memory is made before "
                "the first step: by the method init_state(state) of the stage that owns it."
            )
        if name not in known and memory is not before.slots[name]:
            raise CompileError(f"The step changes the slot {name!r}, which is not its own.")

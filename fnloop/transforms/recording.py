"""What stages may ask for while a step is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, NoReturn

from torch import Tensor

from fnloop._torch.draws import Draws, RandomnessError
from fnloop._torch.tracing import compiling
from fnloop.transforms.compile_errors import CompileError
from fnloop.values.packed import Vectors
from fnloop.values.state import State


class Recording:
    """One recording of a step.

    Args:
        draws: Where its random numbers come from.

    Attributes:
        vectors: Which dicts of tensors are parts of vectors.
    """

    def __init__(self, draws: Draws) -> None:
        self.vectors = Vectors()
        self._draws = draws
        self._key: Tensor | None = None
        self._step: Tensor | None = None

    @contextlib.contextmanager
    def of(self, state: State) -> Generator[None]:
        """Record what happens in this block with `state`."""
        self._key, self._step = state.key, state.step
        with self._draws, compiling(self):
            yield

    @contextlib.contextmanager
    def seeded(self, key: Tensor, step: Tensor, micro: int) -> Generator[None]:
        """In this block random numbers are those of (key, step, micro-batch)."""
        before = len(self._draws.found)
        with self._draws.block(micro):
            yield
        if len(self._draws.found) > before and (key is not self._key or step is not self._step):
            raise RandomnessError(
                "the loss draws random numbers after a stage has changed state.key or state.step, "
                "and a compiled step draws them before it runs, from the key and the step that it "
                "was given"
            )


class Hidden:
    """In the place of a slot that no stage of the step owns."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        name = self.__dict__["_name"]
        raise CompileError(
            f"The step uses the slot {name!r}, which none of its stages owns; a compiled step "
            "takes the memory of its own stages. Let the stage that needs it own it: a class with "
            f'a field name: str = "{name}" and a method memory(state).'
        )

    __getattr__ = __getitem__ = __iter__ = __len__ = __contains__ = __bool__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __truediv__ = _refuse
    __setattr__ = __setitem__ = __call__ = __torch_function__ = _refuse


def check_after(before: State, after: State, known: set[str]) -> None:
    """The step has changed nothing that it has no memory for."""
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
                "the first step: by the method memory(state) of the stage that owns it."
            )
        if name not in known and memory is not before.slots[name]:
            raise CompileError(f"The step changes the slot {name!r}, which is not its own.")

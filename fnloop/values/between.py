"""The state between the steps of one call, of which little can be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Self

from torch import Tensor

from fnloop._torch import pytree
from fnloop.values.state import State


class BetweenError(RuntimeError):
    """Something was read of a state between the steps of one call."""


class Between(State):
    """What callbacks are given at a step after which they have said that they need no state.

    It has the cursor after that step and the memory of the callbacks. Reading anything else
    raises: the next steps have been done by then.
    """

    def __init__(self, cursor: Tensor, slots: Mapping[str, Any]) -> None:
        self.__dict__.update(cursor=cursor, slots=slots)

    def __getattribute__(self, name: str) -> Any:
        if name in _FIELDS:
            _refuse(self)
        return object.__getattribute__(self, name)

    def replace(self, **changes: Any) -> Self:
        if not changes.keys() <= {"cursor", "slots"}:
            _refuse(self)
        return type(self)(**{**self.__dict__, **changes})

    def __repr__(self) -> str:
        return f"Between(cursor={self.cursor.tolist()})"


_FIELDS = frozenset(("step", "calls", "params", "buffers", "key", "skeleton", "context"))


def _refuse(state: Any) -> NoReturn:
    raise BetweenError(
        f"The state after {int(state.cursor[2])} batches is gone: it was in the middle of a call "
        "of several steps (fl.compile(step, steps=...)), and later ones have been done. A callback "
        "or an effect that reads or changes the state at a batch says so: needs_state(cursor, "
        "reported) is True there, and the call ends with that step."
    )


pytree.register(Between, (), _refuse, _refuse, lambda static, children: None)

"""Find out, after an error, which optimizer returned or read something of the wrong form."""

from __future__ import annotations

from typing import Any

from fnloop.optim.base import Makes, Memory, Optimizer, Step, replaced
from fnloop.values.tensors import Tensors


def wrong_part(
    optimizer: Optimizer, grads: Tensors, memory: Memory, params: Tensors, step: Step
) -> TypeError | None:
    """Run `optimizer` again and check the form of what each part returns.

    Returns:
        An error that says which part is written wrongly, and how; None if none is.
    """
    try:
        _checked(optimizer).apply(grads, memory, params, step, True)
    except _FormError as error:
        return TypeError(str(error))
    except Exception:  # an error of the optimizer's own
        return None
    return None


class _FormError(Exception):
    pass


class _Checked(Optimizer):
    """An optimizer that checks what the wrapped one returns."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def makes(self) -> Makes:
        return self.inner.makes

    def names(self) -> tuple[str, ...]:
        return self.inner.names()

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        try:
            made: Any = self.inner.update(grads, memory, params, step)
        except KeyError as error:
            self._check_read(error, memory)
            raise
        return self._check(made, memory)

    def _check_read(self, error: KeyError, memory: Memory) -> None:
        key = error.args[0] if error.args else None
        if key in memory:
            return
        for name in self.names():
            own = memory.get(name)
            if isinstance(own, dict) and key in own:
                raise _FormError(
                    f"{_called(self.inner)} reads memory[{key!r}]; memory is a dict by optimizer "
                    f"name ({_listed(memory)}). Its own is memory[self.name][{key!r}]."
                )

    def _check(self, made: Any, memory: Memory) -> Any:
        who = f"{_called(self.inner)} must return two things, the updates and the memory"
        fix = "Write: return updates, {**memory, self.name: own}."
        if not (isinstance(made, tuple) and len(made) == 2):
            got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
            raise _FormError(f"{who}, and returned {got}. {fix}")
        updates, new = made
        if not isinstance(updates, Tensors):
            raise _FormError(
                f"{who}; as updates, which are fl.Tensors, it returned {type(updates).__name__}. "
                "Compute them with the methods of grads, or write grads.like({...})."
            )
        if not isinstance(new, dict):
            raise _FormError(
                f"{who}; as memory, a dict by optimizer name, it returned {type(new).__name__}. "
                f"{fix}"
            )
        if new.keys() != memory.keys():
            raise _FormError(
                f"{who} with the entries that it was given ({_listed(memory)}); it returned "
                f"{_listed(new)}. {fix}"
            )
        return made


def _checked(optimizer: Any) -> _Checked:
    """Wrap an optimizer and the optimizers in its fields."""
    changes = {field: _inside(value) for field, value in vars(optimizer).items()}
    return _Checked(replaced(optimizer, **changes))


def _inside(value: Any) -> Any:
    if isinstance(value, Optimizer):
        return _checked(value)
    if type(value) is tuple:
        return tuple(map(_inside, value))
    if type(value) is dict:
        return {key: _inside(each) for key, each in value.items()}
    return value


def _called(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__name__}.update"


def _listed(memory: dict[str, Any]) -> str:
    return ", ".join(map(repr, memory)) or "none"

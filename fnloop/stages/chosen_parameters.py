"""Which parameters a gradient is taken of: ``fl.grad(only=..., frozen=...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import Tensor

from fnloop.optim.patterns import Where, as_where, check_patterns, chosen, is_function
from fnloop.schedules.by_count import ByCount, by_epoch, by_step, setting, settings
from fnloop.trees.show import short
from fnloop.values.parameter_attributes import knowing
from fnloop.values.state import State

Only: TypeAlias = str | Iterable[str] | Callable[[str, Tensor], bool]
Frozen: TypeAlias = Only | by_epoch | by_step


class Choice:
    """The parameters of one model that are trained, and those that are frozen, in each phase.

    Args:
        only: Patterns or a function; None for all that require gradients.
        frozen: The same, of those that are not; or settings of them by epoch or step.
        state: A state with the model.

    Attributes:
        trained: The names of the parameters that are trained in some phase.

    Raises:
        ValueError: A pattern fits no parameter, or nothing is left to train in a phase.
    """

    def __init__(self, only: Where | None, frozen: Any, state: State) -> None:
        self._frozen = frozen
        own = state.skeleton.trainable if only is None else _chosen(only, state)
        self._phases: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for where in settings(frozen):
            names = _resting(where, state)
            rest = tuple([name for name in own if name not in names])
            if not rest:
                raise ValueError(
                    f"grad(frozen={short(where)}) freezes all that is trained, so there is nothing "
                    "to differentiate with respect to. Leave out what is to be trained: "
                    f"{', '.join(own[:20])}."
                )
            self._phases[where] = (rest, tuple([n for n in state.params if n in names]))
        some = {name for rest, _ in self._phases.values() for name in rest}
        self.trained = tuple([name for name in own if name in some])

    def now(self, state: State) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of those that are trained now, and of those that are frozen."""
        return self._phases[setting(self._frozen, state, "What is frozen changes")]


def as_only(only: Any) -> Where:
    """Patterns, or a function.

    Raises:
        TypeError: It is neither.
    """
    found = _patterns(only)
    if not found:
        raise TypeError(
            'grad(only=...) takes a pattern such as "D.*", a list of them, or a function '
            f"(name, parameter) -> bool; got {short(only)}."
        )
    return found


def as_frozen(frozen: Any) -> Any:
    """Patterns, a function, None, or settings of these by epoch or step.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(frozen, ByCount):
        values = {start: as_frozen(where) for start, where in frozen.values}
        return type(frozen)(values)  # type: ignore[call-arg]  # a dataclass, made by fl.tree
    if frozen is None or (isinstance(frozen, (tuple, list, set, frozenset)) and not frozen):
        return None
    found = _patterns(frozen)
    if not found:
        raise TypeError(
            'grad(frozen=...) takes a pattern such as "backbone", a list of them, a function '
            '(name, parameter) -> bool, or fl.schedules.by_epoch({0: "backbone", 3: None}); got '
            f"{short(frozen)}."
        )
    return frozen if isinstance(frozen, str) else found


def told(where: Any) -> str:
    """As it was written."""
    lone = isinstance(where, tuple) and len(where) == 1  # type: ignore[reportUnknown]
    return short(where[0] if lone else where)  # type: ignore[reportUnknown]


def _patterns(where: Any) -> Any:
    if is_function(where):
        return where
    found: tuple[Any, ...] = (where,) if isinstance(where, str) else ()
    if isinstance(where, Iterable) and not isinstance(where, (str, Tensor)):
        found = tuple(sorted(where) if isinstance(where, (set, frozenset)) else where)
    return found if all([isinstance(pattern, str) for pattern in found]) else ()


def _chosen(only: Where, state: State) -> tuple[str, ...]:
    """The trained parameters that `only` chooses."""
    if not callable(only):
        check_patterns("grad(only=...)", only, state.params)
    with knowing(state.skeleton.attributes):
        names = set(chosen(only, state.params))
    found = tuple([name for name in state.skeleton.trainable if name in names])
    if not found:
        raise ValueError(
            f"grad(only=...) chooses {', '.join(sorted(names)[:8]) or 'no parameter'}, and nothing "
            "that requires gradients, so there is nothing to differentiate with respect to. There "
            f"are: {', '.join(state.skeleton.trainable[:20]) or 'none'}."
        )
    return found


def _resting(where: Any, state: State) -> set[str]:
    """All parameters that are frozen."""
    if where is None:
        return set()
    names: Where = as_where(where)
    if not callable(names):
        check_patterns("grad(frozen=...)", names, state.params)
    with knowing(state.skeleton.attributes):
        return set(chosen(names, state.params))

"""Calls of a model that are looked at closely: the first of each function, then ever fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from fnloop._torch.draws import HostRandomnessError, RandomnessError
from fnloop._torch.members import draws_by_member
from fnloop._torch.read_only import ReadOnly, memory_of
from fnloop._torch.stand_in import StandIn
from fnloop._torch.tracing import recording
from fnloop.trees.show import short
from fnloop.values.host_random import GLOBAL, RandomSource, host_seeded
from fnloop.values.reached import generators_of
from fnloop.values.tensors import Tensors

T = TypeVar("T")


def is_looked_at(count: int) -> bool:
    """Whether a call is one that is looked at: the 1st, 2nd, 4th, 8th, ...; recorded, each is.

    >>> [count for count in range(1, 20) if is_looked_at(count)]
    [1, 2, 4, 8, 16]
    """
    return not count & (count - 1) or recording() is not None


class CloseLook:
    """Calls functions of a model, and looks closely at some of the calls.

    A close look costs a few microseconds for each operation, so it is taken at the 1st, 2nd, 4th,
    8th, ... call of each function in each mode, and while a step is recorded. It refuses writes to
    parameters before they happen, and finds functions that draw from Python's or NumPy's global
    generator; these are seeded in all later calls too.
    """

    def __init__(self) -> None:
        self._calls: dict[Any, int] = {}
        self._drawing: dict[Any, list[RandomSource]] = {}

    def due(self, user: Any, training: bool) -> bool | None:
        """Count a call of a user's function, and say how it is to be called.

        Returns:
            None if by itself; otherwise by `call`, with this as its argument `closely`.
        """
        key = (_code(user), training)
        count = self._calls[key] = self._calls.get(key, 0) + 1
        if is_looked_at(count):
            return True
        return False if key in self._drawing else None

    def call(
        self,
        function: Callable[[Any], T],
        model: Any,
        params: Mapping[str, Tensor],
        user: Any,
        training: bool,
        closely: bool,
    ) -> T:
        """Return ``function(model)``, with Python's and NumPy's random numbers from the state.

        Args:
            function: Wraps the user's function.
            model: The model.
            params: The parameters that it runs on, by name.
            user: The user's function.
            training: The mode.
            closely: What `due` said.

        Raises:
            RuntimeError: A parameter is written to.
            RandomnessError: Random numbers of Python or NumPy would become constants.
        """
        key = (_code(user), training)
        if not closely:
            with host_seeded(self._drawing[key]):
                return function(model)
        sources = [*GLOBAL, *generators_of(user)]
        stand_ins = [p for p in params.values() if isinstance(p, StandIn)]
        owner = stand_ins[0].source.owner if stand_ins else _nobody
        params = {name: p for name, p in params.items() if not isinstance(p, StandIn)}
        before = {name: tensor.detach() for name, tensor in params.items()}
        read_only = ReadOnly(params, lambda name: written_error(user, name), owner)
        with host_seeded(sources) as host, read_only:
            result = function(model)
        for name, tensor in params.items():
            if memory_of(tensor)[0] != memory_of(before[name])[0] and not _moved(
                before[name], tensor
            ):
                raise replaced_error(user, name)
        if host.drew:
            check_draws(host.drew, short(user))
        if host.drew or len(sources) > len(GLOBAL):
            self._drawing[key] = sources
        return result

    def __reduce__(self) -> Any:
        return CloseLook, ()  # code cannot be pickled, and counts are of this process


def _nobody(tensor: Tensor) -> None:
    """No stand-in has such values."""


def _moved(before: Tensor, now: Tensor) -> bool:
    """Whether values were only moved, as recurrent layers on a GPU move them into one block."""
    return before.device.type != "cpu" and recording() is None and torch.equal(before, now)


def check_draws(drawn: Sequence[str], who: str) -> None:
    """Refuse draws from `drawn` where they would not be a function of the state.

    Raises:
        RandomnessError: In a recording, which keeps the first draw, or for several members.
    """
    who = f"{who} draws from {' and '.join(drawn)}"
    if recording() is not None:
        raise HostRandomnessError(
            f"{who}, and the graph would keep the numbers of its recording as constants, the same "
            "in every step. Draw with torch (torch.rand, torch.randn: their numbers become inputs "
            "of the graph), or draw in the data and give the number with the batch, as a tensor"
        )
    if draws_by_member():
        raise RandomnessError(
            f"{who}, which gives all members of a vmapped step the same numbers. Draw with torch "
            "(torch.rand, torch.randn)"
        )


_VERSION = attrgetter("_version")
"""How often a tensor has been written to."""


class Unwritten:
    """Finds out whether parameters have been written to since this was made."""

    __slots__ = ("_params", "_tensors", "_versions")

    def __init__(self, params: Tensors) -> None:
        self._params, self._tensors = params, params.peek()
        try:
            self._versions = list(map(_VERSION, self._tensors))
        except RuntimeError:  # made under torch.inference_mode(), and without versions
            self._versions = None

    def check(self, user: Any) -> None:
        """Raise a RuntimeError if the function `user` has written to one of them."""
        if self._versions is None:
            return
        now = list(map(_VERSION, self._tensors))
        if now != self._versions:
            changed = zip(self._params.names, self._versions, now, strict=True)
            raise written_error(user, next(name for name, old, new in changed if old != new))


def written_error(function: Any, name: str) -> RuntimeError:
    """The error for a write to a parameter in place."""
    return RuntimeError(
        f"The function {short(function)} writes to the parameter {name!r} in place, and so to the "
        f"state that it is given. {_REMEDY}"
    )


def replaced_error(function: Any, name: str) -> RuntimeError:
    """The error for a parameter that is replaced."""
    return RuntimeError(
        f"The function {short(function)} replaces the parameter {name!r} (module.weight = ..., or "
        f"module.weight.data = ...), which would be lost after the call. {_REMEDY}"
    )


_REMEDY = (
    "A step is a function, and only its optimizer changes parameters: make a new tensor (x = x * 2 "
    "in place of x *= 2; F.linear(x, weight * mask, bias) in place of weight.data *= mask). Of the "
    "layers of torch, an embedding with max_norm writes to its weight: bound the weight's norm in "
    "a stage after update instead."
)


def _code(function: Any) -> Any:
    """What identifies a function, also one that is made anew for each call, such as a lambda."""
    function = getattr(function, "call", function)  # of a stage's `Function`
    return getattr(function, "__code__", type(function))

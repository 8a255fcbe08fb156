"""Random numbers under vmap: each member draws the same numbers as it would alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import CVmapInterpreterPtr, RandomnessType  # pyright: ignore
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from fnloop._torch.random import UNSIGNED, generators, is_random, seeded
from fnloop._torch.tracing import transformed
from fnloop._torch.transformable import transformable

_aten: Any = torch.ops.aten
_peek: Any = torch._C._functorch.peek_interpreter_stack  # pyright: ignore


def drawing(seeds: Sequence[int], device: torch.device) -> Any:
    """A context manager that seeds torch's generators, with one seed per member.

    With several members, every tensor that is drawn has a leading dimension for them.
    """
    if len(seeds) > 1:
        return MemberDraws(seeds, device)
    return _transformed(seeds[0], device) if transformed() else seeded(seeds[0], device)


@contextlib.contextmanager
def _transformed(seed: int, device: torch.device) -> Generator[None]:
    with seeded(seed, device), transformable():
        yield


def draws_by_member() -> bool:
    """Whether this is inside `drawing` with several members."""
    return any(isinstance(mode, MemberDraws) for mode in _get_current_dispatch_mode_stack())


class MemberDraws(TorchDispatchMode):
    """A dispatch mode that splits the batched draws of ``vmap`` into one draw per member."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        super().__init__()
        _check_randomness()
        self._guard, self._transformable = seeded(0, device), transformable()
        self._generators = generators(device)
        self._states = [_states(self._generators, seed) for seed in seeds]
        self._turn = -1  # the last member that drew a permutation
        self._around: list[MemberDraws] = []
        self._covered = False  # inside of another stream, which draws

    def __enter__(self) -> Any:
        stack = _get_current_dispatch_mode_stack()
        self._around = [m for m in stack if isinstance(m, MemberDraws) and not m._covered]
        with contextlib.ExitStack() as entered:
            entered.enter_context(self._guard)
            entered.enter_context(self._transformable)
            result = super().__enter__()
            entered.pop_all()
        for mode in self._around:
            mode._covered = True
        return result

    def __exit__(self, *error: Any) -> None:
        for mode in self._around:
            mode._covered = False
        try:
            super().__exit__(*error)
        finally:
            self._transformable.__exit__(*error)
            self._guard.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._covered or not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise NotImplementedError(
                f"{func.overloadpacket.__name__} draws from a generator of its own, which knows no "
                "members. Leave generator= out: the numbers then follow from each member's key."
            )
        n = len(self._states)
        if func.overloadpacket is _aten.randperm:  # vmap calls it once per member
            self._turn = (self._turn + 1) % n
            return self._as_member(self._turn, functools.partial(func, *args, **kwargs))
        if func.overloadpacket is _aten.multinomial:  # vmap concatenates the members' rows
            draws = [functools.partial(func, p, *args[1:], **kwargs) for p in args[0].chunk(n)]
            return torch.cat([self._as_member(i, draw) for i, draw in enumerate(draws)])
        parts = [
            self._as_member(i, functools.partial(func, *[_part(a, i, n) for a in args], **kwargs))
            for i in range(n)
        ]
        if func.overloadpacket.__name__.endswith("_"):
            return args[0]  # each member has filled its part in place
        if isinstance(parts[0], tuple):  # native_dropout, what dropout is on a GPU
            return tuple([torch.stack(each) for each in zip(*parts, strict=True)])
        return torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0]

    def _as_member(self, i: int, draw: Callable[[], Any]) -> Any:
        for generator, state in zip(self._generators, self._states[i], strict=True):
            generator.set_state(state)
        result = draw()
        self._states[i] = [generator.get_state() for generator in self._generators]
        return result


def _part(argument: Any, i: int, n: int) -> Any:
    """Member `i`'s part of an argument: index a batched tensor, or drop `n` from a size."""
    if isinstance(argument, Tensor):
        return argument[i] if argument.ndim and argument.shape[0] == n else argument
    if isinstance(argument, (list, tuple)) and argument and argument[0] == n:
        return argument[1:]
    return argument


def _states(generators: Sequence[torch.Generator], seed: int) -> list[Tensor]:
    seed &= UNSIGNED
    return [torch.Generator(g.device).manual_seed(seed).get_state() for g in generators]


def _check_randomness() -> None:
    top = _peek()
    if top is None or top.key() != torch._C._functorch.TransformType.Vmap:  # pyright: ignore
        return
    if CVmapInterpreterPtr(top).randomness() == RandomnessType.Same:
        raise ValueError(
            "The members have different keys, so they draw different random numbers, but vmap was "
            'told randomness="same". Use torch.func.vmap(step, ..., randomness="different").'
        )

"""``compile``: a whole step as one graph."""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import optree
import torch
from torch import Tensor

from fnloop._torch.tracing import compilation, tracing
from fnloop.stages.base import Kind, Stage
from fnloop.stages.lift import stage
from fnloop.transforms.arena import Arena
from fnloop.transforms.layout import Layout, Layouts, kind_of
from fnloop.transforms.program import Inputs, Program
from fnloop.trees import static, tree
from fnloop.trees.show import short
from fnloop.values import State
from fnloop.values.donated import donate as give_away

_log = logging.getLogger(__name__)


class CompileError(RuntimeError):
    """A step cannot be one graph."""


@tree
class Compiled(Stage):
    """The stage that `compile` makes."""

    spelling: ClassVar[str] = "compile"
    inner: Any
    donate: bool = False
    backend: Any = static("inductor")

    @property
    def kind(self) -> Kind:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.kind

    @property
    def slot(self) -> str | None:
        return None

    def __call__(self, state: State, x: Any) -> tuple[State, Any]:
        if tracing():
            if compilation() is not None:  # a part of what is being compiled
                return self.inner(state, x)
            raise CompileError(
                "A compiled step cannot be transformed by torch.func: compile last, as in "
                "fl.compile(fl.ensemble(step, n))."
            )
        cache = self._cache
        leaves, structure = optree.tree_flatten(x)
        arena = Arena.of(state, cache.layouts)
        key = (arena.layout, structure, tuple(map(kind_of, leaves)), torch.get_num_threads())
        program = cache.programs.get(key)
        if program is None:
            inputs = Inputs(state, arena.tensors, cache.step, (leaves, structure))
            program = cache.programs[key] = self._compile(inputs, arena.layout)
        if self.donate:
            arena = arena.alone()
        others = [*cache.tensors, *[leaf for leaf in leaves if isinstance(leaf, Tensor)]]
        changed, metrics = program(state, arena.tensors, others)
        after = arena.advance(changed, state, watch=self.donate)
        if self.donate:
            give_away(state)
        return after, metrics

    def stages(self) -> Iterator[Stage]:
        yield from self.inner.stages()

    def init(self, model: Any, seed: int = 0) -> State:
        return self.inner.init(model, seed)

    @functools.cached_property
    def _cache(self) -> _Cache:
        return _Cache(self.inner)

    def _compile(self, inputs: Inputs, layout: Layout) -> Program:
        start = time.perf_counter()
        program = Program(inputs, layout, self.donate, self.backend)
        seconds = time.perf_counter() - start
        _log.info("compiled %d operations in %.1f s", program.operations, seconds)
        return program


class _Cache:
    """What a compiled step has learned: the layouts of its states, and its programs."""

    def __init__(self, step: Stage) -> None:
        self.step = optree.tree_flatten(step)
        self.tensors = [leaf for leaf in self.step[0] if isinstance(leaf, Tensor)]
        self.layouts = Layouts(step)
        self.programs: dict[Any, Program] = {}


def compile(step: Any, donate: bool = False, backend: Any = "inductor") -> Compiled:
    if not isinstance(step, Stage):
        step = stage(step, "step")
    return Compiled(step, donate, backend)

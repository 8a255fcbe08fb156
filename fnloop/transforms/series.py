"""Steps of a compiled step, one after the other on one state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor

from fnloop.transforms.cache import Cache
from fnloop.transforms.compile_errors import CompileError, add_remedy
from fnloop.transforms.kept import Kept
from fnloop.transforms.kinds import ambient, kind_of, orders_of
from fnloop.transforms.program import Program
from fnloop.transforms.recorded import Inputs
from fnloop.trees.named import by_name
from fnloop.values.donated import give_away, release
from fnloop.values.state import State

Build: TypeAlias = Callable[[Inputs, Any], Program]


class Series:
    """One or more steps from a state on; whether the state may be overwritten is asked once.

    Each step has the bits of a call of its own. A donating step marks the given state as donated
    once it has been overwritten. All further states are one object, whose memory moves on: nobody
    else may use it before the last step.

    Args:
        state: The first state.
        cache: Where programs are found by what they depend on.
        donate: Whether each state is written over the one before.
        build: Makes a program.

    Attributes:
        state: The newest state; its cursor is that of the given one.
        cursor: What the next step sees as ``state.cursor``.
    """

    def __init__(self, state: State, cache: Cache, donate: bool, build: Build) -> None:
        if not isinstance(state, State):
            raise TypeError(
                f"A step takes a state, from step.init(model); got {type(state).__name__}."
            )
        if torch.is_grad_enabled() and not state.params.plain:
            raise CompileError(
                "The parameters require gradients, but nothing can be differentiated through a "
                "compiled step: detach them (state.params.detach()), or run the step without "
                "fl.compile."
            )
        self.state, self.cursor = state, state.cursor
        self._cache, self._donate, self._build = cache, donate, build
        self._ambient = ambient()
        self._program: Program | None = None  # which has the memory of `state` to itself
        if self._donate:
            release(state)
        self._kept: Kept | None = None

    def __call__(self, batch: Any) -> Any:
        """Do one step, and return its metrics."""
        tree = batch
        leaves, structure = optree.tree_flatten(batch)
        if not all([isinstance(leaf, Tensor) for leaf in leaves]):
            leaves, structure = optree.tree_flatten(tree := by_name(batch))
        cache = self._cache
        kept = self._kept or Kept.of(self.state, cache.plans)
        kinds, orders = tuple(map(kind_of, leaves)), orders_of(tree)
        key = (kept.plan, structure, kinds, orders, self._donate, self._ambient)
        cache.look()
        program = cache.find(key, self.state)
        if program is None:
            inputs = Inputs(self.state, kept, cache.step, (leaves, structure))
            program = self._build(inputs, batch)
            cache.keep(key, self.state, program)
        if self._donate and program is not self._program:
            kept = kept.unshared(self.state, program.written)
        others = [
            self.cursor,
            *cache.tensors,
            *[leaf for leaf in leaves if isinstance(leaf, Tensor)],
        ]
        # From here on the next state may overwrite the memory of `state`, in one call. After an
        # error, `state.calls` tells whether that has happened.
        try:
            changed, metrics = program(self.state, kept.inputs, others)
        except Exception as error:
            add_remedy(error, self.state, batch)
            raise
        if not changed and program is self._program:
            return metrics  # all of it was written in place
        after = kept.advance(changed, self.state, program.stable)
        before, self.state = self.state, after
        if self._donate:
            give_away(before, after)
        in_place = self._donate and not changed
        self._program, self._kept = (program, kept) if in_place else (None, None)
        return metrics

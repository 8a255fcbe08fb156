"""Copies of a state that is about to be overwritten, in reused memory."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor

from fnloop.trees.equal import alike
from fnloop.values.context import EMPTY
from fnloop.values.state import State


class Staging:
    """Copies states into the same memory each time: new memory takes three times as long.

    >>> from fnloop.values.start import start
    >>> state = start(torch.nn.Linear(2, 1), seed=0)
    >>> staging = Staging()
    >>> first = staging.copy(state)
    >>> second = staging.copy(state.replace(step=state.step + 1))
    >>> int(second.step), second.params["bias"] is first.params["bias"]
    (1, True)
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def copy(self, state: State) -> State:
        """A copy of `state`, valid until the next call."""
        state = state.replace(context=EMPTY)
        flat: Any = optree.tree_flatten(state)  # pyright: ignore[reportArgumentType]
        leaves, structure = flat[0], flat[1]
        self._memory = {str(i): self._copied(str(i), leaf) for i, leaf in enumerate(leaves)}
        return structure.unflatten(self._memory.values())

    def _copied(self, path: str, leaf: Tensor) -> Tensor:
        memory = self._memory.get(path)
        if memory is None or not alike(memory, leaf) or memory.stride() != leaf.stride():
            return torch.clone(leaf.detach())
        return memory.copy_(leaf.detach())

"""What stages may ask for while a step is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from fnloop._torch.draws import Draws


class Recording:
    """One recording of a step.

    Args:
        draws: Where its random numbers come from.
        key, step: Those of the state that the step was given.
    """

    def __init__(self, draws: Draws, key: Tensor, step: Tensor) -> None:
        self._draws = draws
        self._key = key
        self._step = step

    @contextlib.contextmanager
    def seeded(self, key: Tensor, step: Tensor, micro: int) -> Iterator[None]:
        """In this block random numbers are those of (key, step, micro-batch)."""
        before = self._draws.micro
        self._draws.micro = micro
        found = len(self._draws.found)
        yield
        self._draws.micro = before
        if len(self._draws.found) > found and (key is not self._key or step is not self._step):
            raise NotImplementedError(
                "A stage changes state.key or state.step before the loss draws random numbers; a "
                "compiled step draws them before it runs, from the key and the step that it was "
                "given."
            )

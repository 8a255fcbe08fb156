"""Tensors from outside that the graphs of a compiled step contain, and whether they are rebound."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fnloop._torch.references import storage_of
from fnloop.stages.base import Stage
from fnloop.stages.closure import closed_over
from fnloop.trees.show import short
from fnloop.values.close_look import is_looked_at


class Outside:
    """What the graphs of a step contain of what it finds in closures, globals and attributes.

    A look takes up to a millisecond. It is taken in the 1st, 2nd, 4th, 8th, ... call of a run.

    Args:
        step: The step.
    """

    def __init__(self, step: Stage) -> None:
        self._step = step
        self._calls = 0
        self._tensors: dict[int, Tensor] = {}  # by their memory, which the graphs keep anyway

    def begin(self) -> None:
        """Let the next call be the first of a run."""
        self._calls = 0

    def note(self, tensors: Sequence[Tensor]) -> None:
        """Note those tensors of a new graph that can be found."""
        if tensors:
            reached = self._reached()
            found = {storage_of(t)._cdata: t for t in tensors if t.layout is torch.strided}
            self._tensors.update((at, t) for at, t in found.items() if at in reached)

    def is_rebound(self) -> bool:
        """Count a call; in some, find out whether one is not where it was found."""
        self._calls += 1
        if not self._tensors or not is_looked_at(self._calls):
            return False
        reached = self._reached()
        gone = [t for at, t in self._tensors.items() if at not in reached]
        if gone and self._calls > 1:
            warnings.warn(_REBOUND.format(tensor=short(gone[0])), stacklevel=5)
        if gone:
            self._tensors.clear()
        return bool(gone)

    def _reached(self) -> set[int]:
        found = closed_over(self._step, modules=True)
        return {storage_of(t)._cdata for t in found if t.layout is torch.strided}


_REBOUND = (
    "The compiled step was recorded with {tensor} from outside (a teacher, a memory bank, weights "
    "of classes), and another tensor is in its place now. It is recorded anew; calls before this "
    "one may have used the old tensor, as a step looks for it in the first call of fl.fit and "
    "fl.run, and in the 2nd, 4th, 8th, ... only. Give such tensors with the batch, keep them in a "
    "buffer of the model, or write to them in place: bank.copy_(new), teacher.load_state_dict(...)."
)

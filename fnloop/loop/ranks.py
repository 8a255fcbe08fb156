"""The ranks that run one loop together: before each step they agree on whether to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fnloop._torch.rank_store import is_lost
from fnloop.dist.agreement import RankError, gate, leave
from fnloop.dist.mesh import Mesh
from fnloop.dist.whereabouts import begin_step, lost
from fnloop.effects.effect import Effect
from fnloop.loop.interrupt import Interrupt
from fnloop.loop.limits import Limits
from fnloop.values.cursor import Cursor

_LATE, _SIGNAL, _SAVE = 1, 2, 4


class Ranks:
    """What the ranks of a mesh decide together: signals, the time limit, demands to save.

    Args:
        mesh: The ranks; of one process nothing is asked.
        interrupt, limits, effects: Those of the loop.
    """

    def __init__(
        self, mesh: Mesh, interrupt: Interrupt, limits: Limits, effects: Sequence[Effect]
    ) -> None:
        self.mesh, self._interrupt, self._limits, self._effects = mesh, interrupt, limits, effects
        self._together = mesh.data > 1
        interrupt.alone = limits.alone = not self._together

    def turn(self, cursor: Cursor, draw: Callable[[], Any]) -> Callable[[], Any]:
        """Agree on what ends the run before the batch at `cursor`; and a function that draws it.

        With many ranks it is drawn before, so that all learn of one that cannot.

        Raises:
            RankError: A rank has failed, or the data of the ranks differ.
        """
        if not self._together:
            return draw
        begin_step(cursor.count + 1)
        limits, interrupt = self._limits, self._interrupt
        late, drawn = limits.late(self._effects), None
        try:
            if not limits.done(cursor):
                drawn = draw()
        except Exception as error:
            leave(self.mesh, error)
            raise
        asked = any([effect.asked for effect in self._effects])
        flags = _LATE * late + _SIGNAL * bool(interrupt.came) + _SAVE * asked
        after = None if drawn is None else drawn[0]
        same, every = gate(self.mesh, "the start", repr((cursor, after)), flags)
        came = [rank for rank, each in enumerate(every) if each & _SIGNAL]
        if came and not interrupt.came:
            interrupt.came = f"a signal to rank {came[0]}"
        limits.out_of_time = any([each & _LATE for each in every])
        if any([each & _SAVE for each in every]):
            for effect in self._effects:
                effect.asked = True
        if not same and not came:
            raise RankError(
                f"The ranks are at different places of their data: this one, rank "
                f"{self.mesh.rank}, is at {cursor} and then at {after}. The usual cause is data of "
                "different lengths. Give every rank all of the data: the step takes each rank's "
                "part of every batch."
            )
        return lambda: drawn

    def leave(self, error: BaseException) -> None:
        """Tell the other ranks of an error that ends the loop here."""
        if not self._together or isinstance(error, RankError):
            return
        if is_lost(error):  # in a compiled step, where nobody could tell
            error.add_note(f"fnloop: {lost(error)}")
        else:
            leave(self.mesh, error)

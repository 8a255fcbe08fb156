"""The ranks that run one loop together: before each step they agree on whether to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fnloop._torch.rank_store import is_lost
from fnloop.data.fingerprint import checksum
from fnloop.distributed.gates import RankError, gate, leave
from fnloop.distributed.mesh import Mesh
from fnloop.distributed.whereabouts import begin_step, lost
from fnloop.effects.effect import Effect
from fnloop.loop.interrupt import SIGNALS, Interrupt
from fnloop.loop.limits import Limits
from fnloop.stages.callback import Callback
from fnloop.values.cursor import Cursor
from fnloop.values.rhythm import Rhythm

_LATE, _SIGNAL = 1, 1 << 1  # a bit for each signal
_STOP = 1 << 7
_TOLD = 8  # the first bit of what is asked or due, each of which has one

SAME_DATA = (
    "Every rank is given the same ones, and takes its part. Usual causes: data that is divided "
    "among the ranks before (by a loader, or by the rank in your code): give every rank all of it; "
    "a random generator of the data's own, as of default_rng(): seed it; an order that differs "
    "from process to process, as that of a set or of a folder's files: sort it."
)


class Ranks:
    """What the ranks of a mesh decide together: signals, stops, the clock, demands to save.

    Args:
        mesh: The ranks; of one process nothing is asked.
        interrupt, limits, stages, effects: Those of the loop.

    Attributes:
        together: Whether there are several.
        asked: What a metric of this rank's last step asks for: a status and a reason; else None.
        stop: The same, once all ranks know of it.
    """

    def __init__(
        self,
        mesh: Mesh,
        interrupt: Interrupt,
        limits: Limits,
        stages: Sequence[Callback],
        effects: Sequence[Effect],
    ) -> None:
        self.mesh, self._interrupt, self._limits, self._effects = mesh, interrupt, limits, effects
        self._everywhere = [effect for effect in effects if effect.ranks == "all"]
        self.together, self._first = mesh.data > 1, True
        self.asked: tuple[str, str] | None = None
        self.stop: tuple[str, str] | None = None
        everywhere = [*stages, *self._everywhere] if self.together else []
        # What runs on one rank only goes by its own clock.
        self._shared = _timed(everywhere)
        self._own = [
            rhythm
            for rhythm in _timed([*stages, *effects])
            if not any(rhythm is other for other in self._shared)
        ]
        interrupt.alone = limits.alone = not self.together

    def turn(self, cursor: Cursor, draw: Callable[[], Any]) -> Callable[[], Any]:
        """Agree on what ends the run before the batch at `cursor`; and a function that draws it.

        With many ranks it is drawn before, so that all learn of one that cannot, or that has drawn
        another batch. On a GPU the first batch alone is looked at, as that takes a wait.

        Raises:
            RankError: A rank has failed, or the data of the ranks differ.
        """
        if self._own:
            self.look_at_the_clock(cursor.count + 1)
        if not self.together:
            return draw
        begin_step(cursor.count + 1)
        limits, interrupt = self._limits, self._interrupt
        late, drawn = limits.late(self._effects), None
        try:
            if not limits.done(cursor) and self.asked is None:
                drawn = draw()
        except Exception as error:
            leave(self.mesh, error)
            raise
        place = (cursor, None) if drawn is None else (cursor, drawn[0])
        seen = 0 if drawn is None else checksum(drawn[1], devices=self._first)
        self._first = False
        same, every = gate(self.mesh, "the start", repr((place, seen)), self._flags(late))
        # What was drawn is not put back.
        limits.out_of_time |= any([each & _LATE for each in every])
        self._ask(every, cursor.count + 1)
        self._end(every)
        if not same and not interrupt.came and self.stop is None:
            self._refuse(place)
        return lambda: drawn

    def _refuse(self, place: tuple[Cursor, Cursor | None]) -> NoReturn:
        """Say in what the ranks' data differ, before the batch between two places."""
        here, (cursor, after) = f"this one, rank {self.mesh.rank}, is at", place
        if len(set(self.mesh.exchange(place))) > 1:
            raise RankError(
                f"The ranks are at different places of their data: {here} {cursor} and then at "
                f"{after}. The usual cause is data of different lengths. Give every rank all of "
                "the data: the step takes each rank's part of every batch."
            )
        raise RankError(f"The ranks were given different batches, at {cursor}. {SAME_DATA}")

    def _flags(self, late: bool) -> int:
        noted = self._interrupt.noted
        flags = _LATE * late + (_SIGNAL << SIGNALS.index(noted) if noted else 0)
        flags += _STOP * (self.asked is not None)
        told = [
            *(effect.asked for effect in self._everywhere),
            *(rhythm.is_late() for rhythm in self._shared),
        ]
        return flags + sum(1 << bit for bit, is_set in enumerate(told, _TOLD) if is_set)

    def look_at_the_clock(self, count: int) -> None:
        """Let come, at the batch of this count, what is due by this rank's clock alone."""
        for rhythm in self._own:
            if rhythm.is_late():
                rhythm.strike(count)

    def _ask(self, every: Sequence[int], count: int) -> None:
        """Ask an effect that any rank was asked for, and let come what is due on any.

        What runs on one rank is asked there.
        """
        for bit, told in enumerate([*self._everywhere, *self._shared], _TOLD):
            if not any([each & 1 << bit for each in every]):
                continue
            if isinstance(told, Rhythm):
                told.strike(count)
            else:
                told.asked = True

    def _end(self, every: Sequence[int]) -> None:
        """Agree on a signal that any rank has been sent: of several, the last of `SIGNALS`.

        And on a stop that any rank's metrics ask for: of several, that of the first rank.
        """
        for i, name in enumerate(SIGNALS):
            ranks = [rank for rank, each in enumerate(every) if each & _SIGNAL << i]
            if ranks:
                self._interrupt.agreed = name
                self._interrupt.ranks = ranks if len(ranks) < len(every) else []
        if any([each & _STOP for each in every]):
            self.stop = next(filter(None, self.mesh.exchange(self.asked)))

    def leave(self, error: BaseException) -> None:
        """Tell the other ranks of an error that ends the loop here."""
        if not self.together or isinstance(error, RankError):
            return
        if is_lost(error):  # in a compiled step, where nobody could tell
            error.add_note(f"fnloop: {lost(error)}")
        else:
            leave(self.mesh, error)


def _timed(those: Sequence[Callback | Effect]) -> list[Rhythm]:
    """When they come, of those that go by the clock."""
    return [rhythm for one in those for rhythm in one.rhythms if rhythm.is_timed]

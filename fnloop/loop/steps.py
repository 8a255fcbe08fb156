"""``Steps``: the steps of a run, and what callbacks and effects are told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fnloop.data.lent import Lent
from fnloop.data.sources import Source
from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Effect, Run
from fnloop.loop.callbacks import init_callbacks
from fnloop.loop.checks import check_result, check_sent, outline
from fnloop.loop.closing import Closing
from fnloop.loop.interrupt import interrupt_in
from fnloop.loop.limits import Limits
from fnloop.loop.newest import Newest, calls_of
from fnloop.loop.ranks import Ranks
from fnloop.loop.skipped import SkipWatch
from fnloop.loop.together import Calling, Merged, Together
from fnloop.loop.validate import first_validation, last_validation, not_due
from fnloop.stages.base import Stage
from fnloop.stages.callback import Callback
from fnloop.trees.nodes import tree_map
from fnloop.values.close_look import is_looked_at
from fnloop.values.cursor import Cursor
from fnloop.values.donated import may_be_overwritten
from fnloop.values.metrics import Stop
from fnloop.values.stacked import data_key
from fnloop.values.state import State

_log = logging.getLogger("fnloop")


class Steps:
    """The steps of a run. Of each, in this order: `draw`, `step`, `call_back`, `tell`.

    Args:
        step, state: As for `fl.run`.
        source: The data.
        limits: When to stop.
        stages: The callbacks that are stages.
        effects: All effects.
        about: What effects know of the run; kept up to date.
        mesh: The ranks that do the steps together.

    Attributes:
        state: The newest state; until the first step, the given one.
        metrics: What the last step and its callbacks have reported.
        shown: The same for all steps of the last call.
        status: How the run has ended.
        interrupt: Which signals have come.
        closing: What has been opened.
        newest: Finds the newest state after an exception.
        ranks: What the ranks agree on.
    """

    def __init__(
        self,
        step: Callable[[State, Any], tuple[State, Any]],
        state: State,
        source: Source,
        limits: Limits,
        stages: Sequence[Callback],
        effects: Sequence[Effect],
        about: Run,
        mesh: Mesh,
    ) -> None:
        self.state, self.status = state, "failed"
        self.metrics: Mapping[str, Any] = {}
        self.shown = self.metrics
        self.interrupt = interrupt_in(stages)
        self.closing, self.newest = Closing(self.interrupt, about), Newest(about)
        self._step, self._source, self._limits, self._about = step, source, limits, about
        # A callback that may yet fail needs the state before the step.
        self._keeping: Any = getattr(step, "keeping", step)
        self._stages = [stage for stage in stages if stage is not self.interrupt]
        self._effects = effects
        self._looking = [effect for effect in effects if effect.sees_batches]
        self._first, self._cursor, self._batch = True, Cursor.of(state.cursor), None
        self._batches: Iterator[Any] = iter(())
        self._call: Calling | None = None  # of several steps, the last one
        self._turn: Callable[[], Any] | None = None  # that has come, and has ended that call
        self._told: list[Mapping[str, Any]] = []  # of its steps but the last
        self._overwritten = False  # the state, by the next step
        self._requests: list[Stop] = []
        self._skips = SkipWatch(state, self._cursor, source)
        self.ranks = Ranks(mesh, self.interrupt, limits, stages, effects)
        self._together = Together(step, self._stages, effects, self._skips, self.newest)

    def begin(self) -> None:
        """Open the data and the effects."""
        self._read(self.state)
        for effect in sorted(self._effects, key=lambda effect: not effect.opens_first):
            self.closing.open(effect)
        found = {} if self._cursor.count else first_validation(self._stages, self.state)
        for effect in self._effects if found else ():
            effect.before(found)

    def draw(self) -> bool:
        """Draw a batch; False if the run ends here, for which `status` has a word."""
        about, skips = self._about, self._skips
        draw = self._turn or self.ranks.turn(self._cursor, self._next)
        self._turn = None
        if self.ranks.stop is not None:
            self.status, about.reason = self.ranks.stop
            return False
        if self._limits.reached(self._cursor, self._effects):
            self.status, about.reason = self._limits.outcome()
            if reason := skips.outcome(self.state, self.metrics, self._batch, self._cursor):
                self.status, about.reason = "stopped", reason
            return False
        drawn = None if self.interrupt.came else draw()
        if drawn is not None:
            self._cursor, self._batch = drawn
            self.newest.drawn = self._cursor
            return True
        if self.interrupt.came:  # after the callbacks, which ask for a stop themselves
            self.status, about.reason = "interrupted", self.interrupt.reason
        else:  # an iterator that ends
            self.status = self._limits.ended_early(self._cursor)
        return False

    def step(self) -> None:
        """Do the step on the batch that was drawn; or several, in one call."""
        about, cursor = self._about, self._cursor
        before = outline(self.state) if self._first else None
        due = self._stages and any([stage.is_due(cursor) for stage in self._stages])
        step = self._keeping if due else self._step
        if self._together.steps == 1:
            looks = self._first or is_looked_at(cursor.count)
            lent = Lent(self._source, self._batch) if looks else None
            result = step(self.state, self._batch)
            if lent is not None:
                lent.check("The step")
        else:  # of a compiled step, which refuses to write to its batch
            draw = None if self._first else self._following
            self._call, result = self._together.go(self.state, cursor, self._batch, draw)
            self._cursor, self._batch = cursor, _ = self._call.cursor, self._call.batch
        if before is not None:
            check_result(self._step, before, result)
        state, self.metrics = result
        for turn in self._call.before if self._call is not None else ():
            about.reported.update(turn.metrics)
        about.reported.update(self.metrics)
        del result  # a state that is still referred to cannot be overwritten
        self.state = state = state.replace(cursor=cursor.tensor())
        self._overwritten = may_be_overwritten(state)
        if self._overwritten and step is self._step:  # so was the one before: it is gone
            about.state, about.cursor, about.whole = state, cursor, False
            self.newest.calls = calls_of(state)
        elif not state.params.plain:  # else the autograd graph would grow with every step
            self.state, self.metrics = tree_map(torch.detach, (state, self.metrics))

    def call_back(self) -> None:
        """Call the callbacks; before them, as some save, look whether steps are skipped."""
        if self._call is not None:
            self._told = []
            for turn in self._call.before:
                self.state, seen = self._together.tell(self.state, turn)
                self._told.append(seen)
        skips, cursor, first = self._skips, self._cursor, self._first
        if cursor.count >= skips.due or not cursor.index:
            skips.look(self.state, self.metrics, self._batch, cursor)
        if first:
            example = {**self._others(), **self.metrics}
            self._together.reported = frozenset(example)
            self.state = init_callbacks(self._stages, self._effects, self.state, example)
        for callback in self._stages:
            result = callback(self.state, self.metrics)
            if first:
                check_result(callback, self.state, result)
            self.state, self.metrics = result
            del result
        if self.interrupt.came:
            self.state, self.metrics = self.interrupt(self.state, self.metrics)
        self._first = False

    def _others(self) -> Mapping[str, Any]:
        """Examples of the metrics that the step reports at some calls only."""
        step, waiting = self._step, self._stages or any([e.needs() for e in self._effects])
        return step.others(self.state, self._batch) if waiting and isinstance(step, Stage) else {}

    def tell(self) -> None:
        """Tell the effects; and note who asks for a stop."""
        about = self._about
        about.state, about.cursor, about.whole = self.state, self._cursor, True
        if self._stages or not self._overwritten:
            self.newest.calls = calls_of(self.state) if self._overwritten else None
        for effect in self._effects:
            effect(self.state, self.metrics)
        if self._overwritten and (self._stages or self._effects):  # what an effect keeps stays
            about.state = self.state = self.state.replace()
        several = [*self._told, self.metrics]
        self.shown = Merged(several) if self._told else self.metrics
        self._requests = []
        if any([isinstance(m, Stop) and m for each in several for m in each.values()]):
            self._requests = self._heard(several)

    def go_on_from(self, sent: Any) -> None:
        """Take a state in place of the newest, and read on where it is."""
        check_sent(sent)
        if not torch.equal(sent.cursor, self.state.cursor):
            self._about.cursor = self._cursor = Cursor.of(sent.cursor)
            self._read(sent)
            self._turn = None
        self._about.state, self.newest.calls = sent, calls_of(sent)
        self.state = sent

    def asked_to_stop(self) -> bool:
        """Whether a metric of the last call asks for it; many ranks agree on it in `draw`.

        Raises:
            Exception: What came in that call after a step.
        """
        if self._requests:
            first = self._requests[0]
            self.status, self.ranks.asked = first.status, (first.status, first.reason)
        elif self._call is not None and self._call.failed:
            raise self._call.failed
        return bool(self._requests) and not self.ranks.together

    def end(self) -> None:
        """Say what was skipped, and validate the last state if that was not its turn.

        After SIGTERM and SIGHUP, and at a time limit, there is no time for it.
        """
        if self.status in ("completed", "stopped"):
            self._skips.tell(self.state, self.metrics)
        stopped = self.status in ("stopped", "interrupted") and not self._first
        waiting = not_due(self._stages, self.state) if stopped else []
        came = self.interrupt.came
        if not waiting or self._limits.out_of_time or came not in (None, "Ctrl-C"):
            return
        if came:
            _log.warning("Validating the last state. Press Ctrl-C again to stop at once.")
        self._about.last = last_validation(waiting, self.state, self.metrics)

    @property
    def untrained(self) -> bool:
        """See `SkipWatch`."""
        return self._skips.untrained

    def _heard(self, several: Sequence[Mapping[str, Any]]) -> list[Stop]:
        """The requests to stop of a call's steps, without those that came too early.

        These are forgotten, so they have to be made again.
        """
        cursors = [turn.cursor for turn in self._call.before] if self._call is not None else []
        return [
            metric
            for cursor, metrics in zip([*cursors, self._cursor], several, strict=True)
            for metric in metrics.values()
            if isinstance(metric, Stop) and metric
            if metric.status == "interrupted" or not self._limits.too_early(cursor)
        ]

    def _read(self, state: State) -> None:
        """Read the data from the cursor on, with the key of a state."""
        self._batches = self.closing.read(self._source.iterate(self._cursor, data_key(state)))

    def _next(self) -> Any:
        """The next cursor and batch; None at the end, or if a signal has ended the workers."""
        try:
            drawn = next(self._batches, None)
        except Exception:
            if self.interrupt.noted:
                return None
            raise
        if drawn is not None:
            for effect in self._looking:
                effect.drawn(*drawn)
        return drawn

    def _following(self, cursor: Cursor) -> Any:
        """The batch at `cursor` with the cursor after it; None if the run ends there."""
        draw = self.ranks.turn(cursor, self._next)
        ends = self.interrupt.came or self.ranks.stop or self._limits.reached(cursor, self._effects)
        drawn = None if ends else draw()
        if drawn is None:  # other ranks, whose call has ended before, do not agree on it again
            self._turn = draw
        return drawn

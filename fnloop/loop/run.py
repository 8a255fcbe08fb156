"""``run``: the training loop."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fnloop._torch.process_wide import inside, leave_all
from fnloop.data.bundle import Data
from fnloop.data.divided import refuse_divided
from fnloop.data.sources import Source, as_source
from fnloop.dist.agreement import leave
from fnloop.dist.mesh import Mesh
from fnloop.effects.effect import Effect, Run
from fnloop.loop.at_exit import AtExit
from fnloop.loop.callbacks import init_callbacks, sort
from fnloop.loop.checks import check_ranks, check_result, check_sent, check_slots, outline
from fnloop.loop.closing import Closing
from fnloop.loop.interrupt import Interrupt, interrupt_in
from fnloop.loop.limits import Limits
from fnloop.loop.newest import Newest, calls_of
from fnloop.loop.ranks import Ranks
from fnloop.loop.skipped import SkipWatch
from fnloop.loop.together import Merged, Together
from fnloop.loop.validate import last_validation, not_due
from fnloop.names.keywords import explained
from fnloop.stages.base import mesh_of
from fnloop.stages.callback import Callback
from fnloop.store.files import as_path, files_for
from fnloop.store.run_folder import run_of
from fnloop.trees.nodes import tree_map
from fnloop.values.cursor import Cursor
from fnloop.values.donated import may_be_overwritten
from fnloop.values.error_state import attach_state
from fnloop.values.metrics import Stop
from fnloop.values.mode import set_training, training
from fnloop.values.state import State

_log = logging.getLogger("fnloop")


@explained
def run(
    step: Callable[[State, Any], tuple[State, Any]],
    state: State,
    data: Any,
    steps: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    callbacks: Sequence[Any] = (),
    config: Mapping[str, Any] | None = None,
    continues: str | Path | None = None,
    overwrite: bool = False,
) -> Generator[tuple[State, Mapping[str, Any]], State | None, None]:
    """Train, one batch at a time: the loop is yours.

    Each iteration draws the batch at ``state.cursor``, calls the step, then the callbacks that are
    stages, in order, then all effects, and yields. To replace the state from the body of your loop,
    use ``send(state)``.

    `steps` and `epochs` count from the given state: running 7 steps and then 13 is running 20, to
    the bit. The first limit reached ends the loop; without limits it runs until the data ends or a
    callback asks for a stop.

    Args:
        step: A training step: a stage, or any function ``(state, batch) -> (state, metrics)``.
        state: From ``step.init(model)``.
        data: `fl.Batches`, a ``DataLoader``, a tuple of tensors (one batch), or any iterable.
        steps: Batches to draw.
        epochs: Epochs to finish.
        seconds: Time limit. It includes closing the effects: `fl.checkpoint` estimates the time of
            its last save, and the loop ends that much earlier.
        callbacks: Callbacks, bare functions ``(state, metrics) -> (state, metrics)``, and effects.
        config: Hyperparameters that effects (trackers, checkpoints) keep with the run.
        continues: The checkpoint that `state` was loaded from, if this is to be the same run:
            `fl.checkpoint` then goes on in its folder. Default a new run.
        overwrite: Whether `fl.checkpoint` deletes what another run has saved in its folder.

    Yields:
        ``(state, metrics)`` after each step. A step that does several batches in one call,
        ``fl.compile(step, steps=k)``, yields after each call: the state after its last step, and
        the merge of the metrics of all of them. Callbacks and effects are told of each step.

    Raises:
        FileExistsError: The folder of an `fl.checkpoint` holds another run, or is in use.
        TypeError, ValueError: An argument is of the wrong kind; the state lacks the step's memory;
            the step or a callback returns the wrong thing; a callback waits for a metric that
            nothing reports; two stages share a slot.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data = fl.Batches(torch.ones(8, 2), batch_size=4)
    >>> for state, metrics in run(step, step.init(torch.nn.Linear(2, 1)), data, epochs=3):
    ...     pass
    >>> int(state.step), state.cursor.tolist()
    (6, [3, 0, 6])
    """
    if not isinstance(state, State):
        raise TypeError(
            f"run takes a state, from step.init(model); it was given {type(state).__name__}."
        )
    check_slots(step, state)
    stages, effects = sort(callbacks, step)
    source = as_source(data.train if isinstance(data, Data) else data)
    limits = Limits(Cursor.of(state.cursor), steps, epochs, seconds)
    mesh = mesh_of(step) or Mesh()
    stages = [callback.over(mesh) for callback in stages]
    effects = [each for each in effects if mesh.rank == 0 or each.ranks == "all"]
    about = Run(
        step=step,
        state=state,
        config=dict(config or {}),
        effects=effects,
        batches=source.batches,
        total=limits.total(source),
        overwrite=overwrite,
    )
    if continues is not None:
        path = as_path(continues)
        about.continues, about.id = path, run_of(path, files_for(path)) or about.id
    describe: Any = getattr(source, "about", None)
    if (effects or mesh.data > 1) and describe is not None:
        about.data = describe()
    keep: Any = getattr(source, "memo", None)
    if keep is not None:
        about.position = lambda: keep(about.cursor)
    try:
        if mesh.data > 1:
            refuse_divided(source)
        for effect in effects:
            effect.check_run(about)
    except Exception as error:
        leave(mesh, error)
        raise
    check_ranks(mesh, step, state, about)
    at_exit = AtExit()
    loop = _loop(step, state, source, limits, stages, effects, about, at_exit, mesh)
    at_exit.watch(loop)
    return loop


def _loop(
    step: Callable[[State, Any], tuple[State, Any]],
    state: State,
    source: Source,
    limits: Limits,
    stages: Sequence[Callback],
    effects: Sequence[Effect],
    about: Run,
    at_exit: AtExit,
    mesh: Mesh,
) -> Generator[tuple[State, Mapping[str, Any]], State | None, None]:
    status, first = "failed", True
    interrupt = interrupt_in(stages)
    closing, seeding, mode = Closing(interrupt, about), inside(), training()
    metrics: Mapping[str, Any] = {}
    cursor, batch = Cursor.of(state.cursor), None
    skips = SkipWatch(state, cursor, source)
    keeping: Any = getattr(step, "keeping", step)  # for where a callback may yet fail
    newest = Newest(about)
    together = Together(step, stages, effects, skips, newest)
    ranks = Ranks(mesh, interrupt, limits, effects)
    try:
        try:
            batches = closing.read(source.iterate(cursor, int(state.key)))
            for effect in sorted(effects, key=lambda effect: not effect.opens_first):
                closing.open(effect)
            at_exit.begin()
            limits.begin()
            while True:
                draw = ranks.turn(cursor, functools.partial(_drawn, batches, interrupt))
                if limits.reached(cursor, effects):
                    status, about.reason = limits.outcome()
                    if reason := skips.outcome(state, metrics, batch, cursor):
                        status, about.reason = "stopped", reason
                    break
                if interrupt.came:  # after the callbacks, which ask for a stop themselves
                    status, about.reason = "interrupted", interrupt.reason
                    break
                drawn = draw()
                if drawn is None and not interrupt.came:  # an iterator that ends
                    status = limits.ended_early(cursor)
                    break
                if drawn is None:
                    status, about.reason = "interrupted", interrupt.reason
                    break
                cursor, batch = drawn
                newest.drawn = cursor
                before = outline(state) if first else None
                now = keeping if any([callback.is_due(cursor) for callback in stages]) else step
                if together.steps == 1:
                    call, result = None, now(state, batch)
                else:
                    rest = functools.partial(_following, batches, interrupt, limits, effects)
                    call, result = together.go(state, cursor, batch, None if first else rest)
                    cursor, batch = call.cursor, call.batch
                if before is not None:
                    check_result(step, before, result)
                state, metrics = result
                del result  # a state that is still referred to cannot be overwritten
                state = state.replace(cursor=cursor.tensor())
                given = may_be_overwritten(state)  # by the next step
                if given and now is step:  # this one has done so: there is no earlier state
                    about.state, about.cursor, about.whole = state, cursor, False
                    newest.calls = calls_of(state)
                elif not state.params.plain:  # else the autograd graph would grow with every step
                    state, metrics = tree_map(torch.detach, (state, metrics))
                told: list[Mapping[str, Any]] = []  # of the steps before the last one of a call
                for turn in call.before if call else ():
                    state, seen = together.tell(state, turn)
                    told.append(seen)
                if cursor.count >= skips.due or not cursor.index:  # before callbacks that save
                    skips.look(state, metrics, batch, cursor)
                if first:
                    together.reported = frozenset(metrics)
                    state = init_callbacks(stages, effects, state, metrics)
                for callback in stages:
                    result = callback(state, metrics)
                    if first:
                        check_result(callback, state, result)
                    state, metrics = result
                    del result
                first = False
                about.state, about.cursor, about.whole = state, cursor, True
                if stages or not given:
                    newest.calls = calls_of(state) if given else None
                for effect in effects:
                    effect(state, metrics)
                if given and (stages or effects):  # what an effect has kept stays
                    about.state = state = state.replace()
                requests = [
                    m
                    for each in (*told, metrics)
                    for m in each.values()
                    if isinstance(m, Stop) and m
                ]
                shown = Merged([*told, metrics]) if told else metrics
                sent = yield state, shown
                while sent is not None:
                    check_sent(sent)
                    if not torch.equal(sent.cursor, state.cursor):
                        about.cursor = cursor = Cursor.of(sent.cursor)
                        batches = closing.read(source.iterate(cursor, int(sent.key)))
                    about.state, newest.calls = sent, calls_of(sent)
                    state = sent
                    sent = yield state, shown
                if requests:
                    status = requests[0].status
                    break
                if call and call.failed:
                    raise call.failed
            if status in ("completed", "stopped"):
                skips.tell(state, metrics)
            if status in ("stopped", "interrupted") and not first and not limits.out_of_time:
                about.last = _validated(stages, state, metrics, interrupt)
        except GeneratorExit:  # the user's loop ended early
            status = "stopped"
            raise
        except BaseException as error:
            interrupt.hold = True  # until everything is closed, but for the time in a `close`
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            # A signal handler's may have come where these are put back.
            if not seeding:
                leave_all()
            set_training(mode)
            ranks.leave(error)
            newest.recover()
            attach_state(error, about.state)
            raise
        finally:
            interrupt.hold = True
            about.untrained = skips.untrained
            closing.close(status)
    finally:
        interrupt.hold = True
        closing.close(status)  # goes on where an exception between two effects has ended it
        at_exit.end()


def _drawn(batches: Iterator[Any], interrupt: Interrupt) -> Any:
    """The next cursor and batch; None at the end, or if a signal has ended the data's workers."""
    try:
        return next(batches, None)
    except Exception:
        if interrupt.noted:
            return None
        raise


def _following(
    batches: Iterator[Any],
    interrupt: Interrupt,
    limits: Limits,
    effects: Sequence[Effect],
    cursor: Cursor,
) -> Any:
    """The batch at `cursor` with the cursor after it; None if the run ends there."""
    if interrupt.came or limits.reached(cursor, effects):
        return None
    return _drawn(batches, interrupt)


def _validated(
    stages: Sequence[Callback], state: State, metrics: Mapping[str, Any], interrupt: Interrupt
) -> Mapping[str, Any]:
    """The last validation of a run that was stopped between two of them.

    After SIGTERM and SIGHUP, and at a time limit, there is no time for it.
    """
    waiting = not_due(stages, state)
    if not waiting or interrupt.came not in (None, "Ctrl-C"):
        return {}
    if interrupt.came:
        _log.warning("Validating the last state. Press Ctrl-C again to stop at once.")
    return last_validation(waiting, state, metrics)

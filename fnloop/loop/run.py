"""``run``: the training loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop._torch.freed_memory import keep_freed
from fnloop._torch.process_wide import inside, leave_all
from fnloop.data.divided import refuse_divided
from fnloop.data.sources import as_source
from fnloop.distributed.gates import leave
from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Run
from fnloop.loop.at_exit import AtExit
from fnloop.loop.callbacks import sort
from fnloop.loop.checks import check_ranks, check_slots
from fnloop.loop.limits import Limits
from fnloop.loop.steps import Steps
from fnloop.names.keywords import explained
from fnloop.stages.base import mesh_of
from fnloop.store.files import as_path, files_for
from fnloop.store.run_folder import run_of
from fnloop.values.cursor import Cursor
from fnloop.values.error_state import attach_state
from fnloop.values.mode import set_training, training
from fnloop.values.rhythm import Pace
from fnloop.values.state import State


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
    min_steps: int | None = None,
    min_epochs: int | None = None,
) -> Generator[tuple[State, Mapping[str, Any]], State | None, None]:
    """Train, one batch at a time: the loop is yours.

    Each iteration draws the batch at ``state.cursor``, calls the step, then the callbacks that are
    stages, in order, then all effects, and yields. To replace the state from the body of your loop,
    use ``send(state)``.

    `steps` and `epochs` count from the given state: running 7 steps and then 13 is running 20, to
    the bit. A state that was left in mid-epoch goes on there. To begin other data anew, give
    ``state.replace(cursor=fl.data.Cursor().tensor())``. The first limit reached ends the loop;
    without limits it runs until the data ends or a callback asks for a stop.

    Args:
        step: A training step: a stage, or any function ``(state, batch) -> (state, metrics)``.
        state: From ``step.init(model)``.
        data: `fl.Batches`, a ``DataLoader``, a tuple of tensors (one batch), or any iterable; of
            `fl.Data`, its part ``train``.
        steps: Batches to draw.
        epochs: Epochs to finish.
        seconds: Time limit. It includes closing the effects: `fl.checkpoint` estimates the time of
            its last save, and the loop ends that much earlier.
        callbacks: Callbacks, bare functions ``(state, metrics) -> (state, metrics)``, and effects.
        config: Hyperparameters that effects (trackers, checkpoints) keep with the run.
        continues: The checkpoint that `state` was loaded from, if this is to be the same run:
            `fl.checkpoint` then goes on in its folder. Default a new run.
        overwrite: Whether `fl.checkpoint` deletes what another run has saved in its folder.
        min_steps, min_epochs: Batches and epochs before which no callback can stop the run. A stop
            asked for earlier is held back and forgotten: the callback has to ask again. (The
            metric still says that it has asked. Signals and the time limit are not held back.)

    Yields:
        ``(state, metrics)`` after each step. A step that does several batches in one call,
        ``fl.compile(step, steps=k)``, yields after each call: the state after its last step, and
        the merge of the metrics of all of them. Callbacks and effects are told of each step.

    Raises:
        FileExistsError: The folder of an `fl.checkpoint` holds another run, or is in use.
        TypeError, ValueError: An argument is of the wrong kind; the state lacks the step's memory;
            the step or a callback returns the wrong thing; a callback waits for a metric that
            nothing reports; two stages share a slot.

    >>> import torch, fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data = fl.Batches(torch.ones(8, 2), batch_size=4)
    >>> for state, metrics in run(step, step.init(torch.nn.Linear(2, 1)), data, epochs=3):
    ...     pass
    >>> int(state.step), state.cursor.tolist()
    (6, [3, 0, 6])
    """
    check_slots(step, state)
    stages, effects = sort(callbacks, step)
    source = as_source(data)
    limits = Limits(Cursor.of(state.cursor), steps, epochs, seconds, min_steps, min_epochs)
    mesh, pace = mesh_of(step) or Mesh(), Pace.of(source, limits.least)
    stages = [callback.over(mesh).along(pace) for callback in stages]
    effects = [each for each in effects if mesh.rank == 0 or each.ranks == "all"]
    about = Run(
        step=step,
        state=state,
        config=dict(config or {}),
        effects=effects,
        batches=source.batches,
        total=limits.total(source),
        overwrite=overwrite,
        mesh=mesh,
        pace=pace,
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
        check_ranks(mesh, step, state, about)
        for effect in effects:
            effect.check_run(about)
    except Exception as error:
        leave(mesh, error)
        raise
    keep_freed()
    at_exit = AtExit()
    turns = Steps(step, state, source, limits, stages, effects, about, mesh)
    loop = _loop(turns, limits, about, at_exit)
    at_exit.watch(loop)
    return loop


# Since Python 3.12, a jump back to the head of a loop, where a signal handler may be called, is not
# part of a `try` around the loop: the loop is in a function of its own.
def _turns(steps: Steps) -> Generator[tuple[State, Mapping[str, Any]], State | None, None]:
    while steps.draw():
        steps.step()
        steps.call_back()
        steps.tell()
        sent = yield steps.state, steps.shown
        while sent is not None:
            steps.go_on_from(sent)
            sent = yield steps.state, steps.shown
        if steps.asked_to_stop():
            break


def _loop(
    steps: Steps, limits: Limits, about: Run, at_exit: AtExit
) -> Generator[tuple[State, Mapping[str, Any]], State | None, None]:
    interrupt, closing = steps.interrupt, steps.closing
    seeding, mode = inside(), training()
    try:
        try:
            steps.begin()
            at_exit.begin()
            limits.begin()
            yield from _turns(steps)
            steps.end()
        except GeneratorExit:  # the user's loop ended early
            steps.status = "stopped"
            raise
        except BaseException as error:
            interrupt.hold = True  # until everything is closed, but for the time in a `close`
            steps.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            # A signal handler's may have come where these are put back.
            if not seeding:
                leave_all()
            set_training(mode)
            steps.ranks.leave(error)
            steps.newest.recover()
            attach_state(error, about.state)
            raise
        finally:
            interrupt.hold = True
            about.untrained = steps.untrained
            closing.close(steps.status)
    finally:
        interrupt.hold = True
        closing.close(steps.status)  # goes on where an exception between two effects has ended it
        at_exit.end()

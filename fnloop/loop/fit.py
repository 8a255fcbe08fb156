"""``fit``: `run` until it ends, and keep a history."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Never, TypeVar

from fnloop.data.limiting import SMOKE, limit
from fnloop.data.sources import as_source
from fnloop.distributed.mesh import Mesh
from fnloop.effects.screens import screen
from fnloop.loop import resume as resuming
from fnloop.loop.callbacks import listed
from fnloop.loop.frames import shorten
from fnloop.loop.history import History
from fnloop.loop.hyperparameters import hyperparameters
from fnloop.loop.interrupt import Interrupt
from fnloop.loop.progress import progress as Progress
from fnloop.loop.run import run
from fnloop.loop.smoke import in_smoke, smoke_folder
from fnloop.names.arguments import checking
from fnloop.names.keywords import check_keywords
from fnloop.stages.base import mesh_of
from fnloop.stages.callback import Callback
from fnloop.values.counts import as_count, as_number
from fnloop.values.cursor import Cursor
from fnloop.values.donated import newest
from fnloop.values.error_state import add_note, attach
from fnloop.values.state import State

_log = logging.getLogger("fnloop")


def fit(
    step: Callable[[State, Any], tuple[State, Any]],
    state: State,
    data: Any,
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    callbacks: Sequence[Any] = (),
    resume: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
    min_epochs: int | None = None,
    min_steps: int | None = None,
    budget: float | None = None,
    smoke: bool = False,
    **wrong: Never,
) -> tuple[State, History]:
    """Train to the end, and keep a history.

    The first Ctrl-C, SIGTERM or SIGHUP finishes the step, closes everything (so `fl.checkpoint`
    saves) and returns the state, with ``history.status == "interrupted"``; ``history.reason`` names
    the signal. The second raises ``KeyboardInterrupt``. Whatever is raised, everything is closed
    before, and the error has the last good state: ``error.state``, ``error.history`` (unless it has
    attributes of these names, or allows none).

    After Ctrl-C and `fl.stop`, callbacks such as ``fl.every(n, fl.validate(...))`` that are not due
    evaluate the last state once more.

    Each new state is written over the one before, but not over the given one, by a compiled step
    (`fl.compile`) and by one that ends in `fl.update` with an optimizer that has a fused kernel. If
    an effect or a callback keeps such a state, it is copied.

    Args:
        step, state, data, epochs, steps, seconds, callbacks: As in `fl.run`; at least one limit.
        resume: A checkpoint; or a folder of checkpoints: resume from its newest undamaged one, if
            there is one. `epochs` and `steps` are then totals, counted from batch 0. What has
            changed since the checkpoint is logged, and is in ``history.resumed``. A run that was
            ended by early stopping is not continued, unless its patience was raised. The run keeps
            its identity, so `fl.checkpoint` goes on in its folder.
        config: Hyperparameters to keep with the run, besides those of `step`.
        progress: Whether to show an `fl.progress`, if none is among the callbacks; default where
            somebody can see it: on a terminal and in a notebook, not in a pipe, a file or a CI log.
        overwrite: Whether `fl.checkpoint` deletes what another run has saved in its folder; it
            does so after the first step. Without it that is an error.
        min_epochs, min_steps: As in `fl.run`; with `resume` they are totals, too.
        budget: Seconds of the whole run: with `resume`, what it has taken before is counted
            (``history.seconds``), as far as its last checkpoint knows.
        smoke: Run through everything once, to see that nothing fails, and leave no file: one epoch
            of two batches; each `fl.every` comes at its end, and validates on two batches;
            `fl.checkpoint` saves to a folder that is then deleted, `fl.track` tells no tracker. All
            limits and `resume` are left out. An effect of yours that writes says in its method
            ``smoke(folder)`` what takes its place.

    Returns:
        The last state, and the `fl.History` of the run.

    Raises:
        FileExistsError: The folder of an `fl.checkpoint` holds another run, or is in use.

    >>> import torch, fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data = fl.Batches(torch.ones(8, 2), batch_size=4)
    >>> state, history = fit(step, step.init(torch.nn.Linear(2, 1)), data, epochs=3)
    >>> history.status, len(history), history["loss"][0] > history["loss"][-1]
    ('completed', 3, True)
    """
    # Not by `explained`, whose arguments would hold the given state for as long as this runs.
    check_keywords(fit, wrong)
    _check(
        (step, state), {"resume": resume, "config": config, "progress": progress, "smoke": smoke}
    )
    if smoke:
        with smoke_folder(mesh_of(step) or Mesh()) as folder:
            return fit(
                step,
                state,
                limit(data, SMOKE),
                epochs=1,
                callbacks=in_smoke(listed(callbacks), folder),
                config=config,
                progress=progress,
            )
    if epochs is None and steps is None and seconds is None and budget is None:
        raise ValueError("fit needs a limit: epochs=, steps=, seconds= or budget=.")
    steps = None if steps is None else as_count(steps, "steps=")
    epochs = None if epochs is None else as_count(epochs, "epochs=")
    min_steps = None if min_steps is None else as_count(min_steps, "min_steps=")
    min_epochs = None if min_epochs is None else as_count(min_epochs, "min_epochs=")
    budget = None if budget is None else as_number(budget, "budget=")
    donating: Any = getattr(step, "donating", None)
    if donating is not None:  # nobody else refers to the states between the first and the last
        step, state = donating(), state.replace()
    interrupt, given = Interrupt(), [*listed(callbacks)]
    if _is_wanted(progress, given):
        given.append(Progress())
    history = _history(given)
    everything = [*([] if history in given else [history]), *given, interrupt]
    config = {**hyperparameters(step), **(config or {})}
    if resume is not None:
        data = as_source(data)
        state, history.resumed = resuming.resume(resume, step, state, data, everything, config)
        cursor = Cursor.of(state.cursor)
        steps, min_steps = _left(steps, cursor.count), _left(min_steps, cursor.count)
        epochs, min_epochs = _left(epochs, cursor.epoch), _left(min_epochs, cursor.epoch)
        stopped = _stopped(everything, state)
        if stopped and not (min_steps or min_epochs):
            history.status, history.reason = "stopped", stopped
            _log.warning(
                "%s: the run had stopped there, so no step is done. To go on, raise what stopped "
                "it (patience= of fl.early_stopping), or leave that callback out.",
                stopped,
            )
            return state, history
        if 0 in (steps, epochs):
            done = (cursor.epoch, cursor.count)
            _log.warning(
                "nothing is left to do: %d epochs and %d batches are done. To go on, raise epochs= "
                "or steps=, which are totals.",
                *done,
            )
    left = _left(budget, history.seconds)
    if left == 0 and history.resumed:
        _log.warning(
            "nothing is left to do: the run has taken %.4g seconds, and its budget is %g. To go "
            "on, raise budget=.",
            history.seconds,
            budget,
        )
    if left is not None:
        seconds = left if seconds is None else min(as_number(seconds, "seconds="), left)
    loop = run(
        step,
        state,
        data,
        steps=steps,
        epochs=epochs,
        seconds=seconds,
        callbacks=everything,
        config=config,
        continues=history.resumed and history.resumed.path,
        overwrite=overwrite,
        min_steps=min_steps,
        min_epochs=min_epochs,
    )
    try:
        try:
            interrupt.listen()
            for state, _ in loop:  # noqa: B007
                pass
        except BaseException as error:  # it may have come here, between two steps
            interrupt.hold = True
            loop.throw(error)  # closes everything, and raises it again
        finally:
            interrupt.hold = True
            interrupt.stop_listening()
        interrupt.raise_held()
    except BaseException as error:
        # What a second one has kept from being done above. Nothing is done twice.
        loop.close()
        interrupt.stop_listening()
        interrupt.hold = False
        attach(error, "state", newest(state))
        attach(error, "history", history)
        shorten(error)
        add_note(error)
        raise
    if interrupt.came and history.status == "completed":  # it came as the run was being closed
        history.status, history.reason = "interrupted", interrupt.reason
    if left is not None and left == seconds and "time limit" in history.reason:
        history.reason = f"the time budget of {budget:g} seconds"
    return state, history


N = TypeVar("N", int, float)


_check = checking("fit", fit)


def _left(total: N | None, done: N) -> N | None:
    """What is left of a total; None if there is none."""
    return None if total is None else max(type(done)(0), total - done)


def _is_wanted(progress: bool | None, callbacks: Sequence[Any]) -> bool:
    """Whether to show the progress, though no callback does."""
    if any(isinstance(getattr(each, "inner", each), Progress) for each in callbacks):
        return False
    return screen() is not None if progress is None else progress


def _stopped(callbacks: Sequence[Any], state: State) -> str | None:
    """Why a callback stopped the run that is resumed, and still would; else None."""
    stages = (callback for callback in callbacks if isinstance(callback, Callback))
    return next((why for callback in stages if (why := callback.stopped(state))), None)


def _history(callbacks: Sequence[Any]) -> History:
    """The history among the callbacks, or a new one."""
    found = [callback for callback in callbacks if isinstance(callback, History)]
    if len(found) > 1:
        raise ValueError("fit keeps one history, and callbacks has two fl.History.")
    return found[0] if found else History()

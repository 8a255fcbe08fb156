"""The laws of stages as checks, to call on your own stages."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fnloop.effects.effect import Effect
from fnloop.loop.run import run
from fnloop.stages.accumulate import accumulate
from fnloop.stages.base import GradStage, Stage
from fnloop.stages.callback import Callback
from fnloop.store.load import load
from fnloop.store.save import save
from fnloop.testing.comparison import LawError, Step, name_of
from fnloop.trees.equal import alike, same_structure, tree_diff, tree_equal
from fnloop.trees.paths import tree_items
from fnloop.values.grads import Grads
from fnloop.values.merging import find
from fnloop.values.start import start
from fnloop.values.state import State


def check_repeatable(step: Step, state: State, x: Any) -> None:
    """Law 2: same inputs, same bits, whatever the global random state is.

    Raises:
        LawError: With a table of the leaves that differ.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> check_repeatable(step, step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2))
    """
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        first = step(state, x)
        seed = int(torch.randint(1 << 30, ()))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        second = step(state, x)
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
    if not tree_equal(first, second):
        raise LawError(
            f"law 2, repeatability: two calls of {name_of(step)} differ:\n"
            + tree_diff(first, second)
            + "\nThe usual causes: it keeps something outside of the state, such as a counter, or "
            'draws random numbers outside of the loss without fl.randomness(state, "name"), or in '
            "an optimizer that does not say draws = True."
        )


def check_init(
    step: Stage, model: Any, seed: int = 0, metrics: Mapping[str, Any] | None = None
) -> None:
    """Law 3: `init` is idempotent, and keeps everything that a state has.

    Args:
        step: Any stage.
        model: As in `Stage.init`.
        seed: As in `Stage.init`.
        metrics: For a callback, an example of the metrics, whose memory is made from them.

    Raises:
        TypeError: `metrics` lacks one that the callback needs.
        LawError: With a table of the leaves that differ.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.adamw()), fl.ema(0.9))
    >>> check_init(step, torch.nn.Linear(2, 1))
    >>> stopping = fl.early_stopping("loss", patience=3)
    >>> check_init(stopping, torch.nn.Linear(2, 1), metrics={"loss": fl.Mean(1.0, 1)})
    """
    init = _init_of(step, metrics)
    state = init(model, seed)
    again = init(state)
    if not tree_equal(state, again):
        raise LawError(f"law 3, init: init twice is not init once:\n{tree_diff(state, again)}")
    old = state.put("somebody_else", {"memory": torch.arange(3)}).replace(step=state.step + 7)
    kept = init(old)
    if not tree_equal(old, kept):
        raise LawError(f"law 3, init: init changed what was there:\n{tree_diff(old, kept)}")


def check_accumulates(
    grad: GradStage,
    state: State,
    batch: Any,
    ks: Sequence[int] = (2, 3),
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Law 4: `accumulate(k)` gives the gradient of the one big batch, to rounding.

    Holds for losses without batch statistics or randomness; the message says if there are any.

    Args:
        grad: A gradient stage, such as ``fl.pipe(loss, fl.grad)``.
        state: Its state.
        batch: A batch with at least ``max(ks)`` examples; best not a multiple of any of `ks`.
        ks: Numbers of micro-batches.
        rtol: Relative tolerance.
        atol: Absolute tolerance for mean gradients.

    Raises:
        LawError: With the leaf, and the usual cause.
        TypeError: `grad` is no gradient stage.

    >>> import fnloop as fl
    >>> gradients = fl.grad(lambda model, batch: model(batch).square().mean())
    >>> check_accumulates(gradients, gradients.init(torch.nn.Linear(2, 1)), torch.rand(7, 2))
    """
    if not isinstance(grad, Stage) or grad.kind != "grad":
        raise TypeError(
            f"check_accumulates takes a gradient stage, such as fl.pipe(loss, fl.grad), without "
            f"fl.update; it was given {name_of(grad)}."
        )
    after, whole = grad(state, batch)
    for k in ks:
        _, parts = accumulate(k)(grad)(state, batch)
        for name, expected in whole.mean.items():
            got = parts.mean[name]
            if not torch.allclose(expected, got, rtol=rtol, atol=atol):
                raise LawError(
                    f"law 4, accumulation: the gradient of {name} over {k} parts is off by "
                    f"{float((expected - got).abs().max()):.3g}. "
                    + _why_parts_differ(grad, state, batch, after, whole)
                )
        if not math.isclose(float(whole.weight), float(parts.weight), rel_tol=1e-6):
            raise LawError(
                f"law 4, accumulation: the weight of {k} parts is {float(parts.weight)}, that of "
                f"the whole {float(whole.weight)}. {_NO_MEAN}"
            )


def check_resumes(
    step: Step,
    state: State,
    data: Any,
    steps: int = 5,
    at: Sequence[int] | None = None,
    callbacks: Callable[[], Sequence[Any]] = tuple,
) -> None:
    """Law 8: a run that is stopped, saved, loaded and resumed ends with the same bits.

    Args:
        step: A training step.
        state: Its state.
        data: What `fl.run` takes; it must be able to restart at a cursor.
        steps: Length of the run.
        at: After how many steps to stop; default after each.
        callbacks: A function that makes the callbacks of one run.

    Raises:
        LawError: With a table of the leaves that differ.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data = fl.Batches(torch.rand(8, 2), batch_size=3, shuffle=True)
    >>> check_resumes(step, step.init(torch.nn.Linear(2, 1)), data, steps=3, callbacks=lambda: [])
    """
    whole = _last(run(step, state, data, steps=steps, callbacks=callbacks()), state)
    for k in range(steps + 1) if at is None else at:
        with tempfile.TemporaryDirectory() as folder:
            stopped = _last(run(step, state, data, steps=k, callbacks=callbacks()), state)
            resumed = load(save(stopped, folder), like=state)
            resumed = _last(
                run(step, resumed, data, steps=steps - k, callbacks=callbacks()), resumed
            )
        # By path: the memory of a callback that has not run since loading is still nested dicts.
        if not tree_equal(dict(tree_items(whole)), dict(tree_items(resumed))):
            raise LawError(
                f"law 8, resuming: stopped after {k} of {steps} steps, the run ends differently:\n"
                + tree_diff(whole, resumed)
                + f"\n{_why_resumed_differs(whole, step, state, data, steps, callbacks())}"
            )


def check_effects(
    step: Step, state: State, data: Any, callbacks: Callable[[], Sequence[Any]], steps: int = 5
) -> None:
    """Law 9: removing every effect changes no bit of the state.

    Args:
        step: A training step.
        state: Its state.
        data: What `fl.run` takes.
        callbacks: A function that makes the callbacks and effects of one run.
        steps: Length of the run.

    Raises:
        LawError: With a table of the leaves that differ.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data = fl.Batches(torch.rand(8, 2), batch_size=4)
    >>> check_effects(step, step.init(torch.nn.Linear(2, 1)), data, lambda: [fl.History()], steps=3)
    """
    pure = [callback for callback in callbacks() if not isinstance(callback, Effect)]
    without = _last(run(step, state, data, steps=steps, callbacks=pure), state)
    with_all = _last(run(step, state, data, steps=steps, callbacks=callbacks()), state)
    if not tree_equal(without, with_all):
        raise LawError(
            f"law 9, effects: an effect changed the state:\n{tree_diff(without, with_all)}"
        )


def check_skips(step: Step, state: State, bad: Any) -> None:
    """Law 10: a batch with a non-finite gradient changes nothing but what counts such batches.

    That is ``state.calls``, and memory that a stage keeps when a step is taken back (see
    `Stage.taken_back`), such as the loss scale.

    Args:
        step: A training step.
        state: Its state.
        bad: A batch whose gradient is not finite, or whose weight is zero.

    Raises:
        LawError: With a table of the leaves that changed.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> check_skips(step, step.init(torch.nn.Linear(2, 1)), torch.full((3, 2), torch.nan))
    """
    after, metrics = step(state, bad)
    kept = _kept_slots(step, state)
    frozen = {name: state.slots[name] for name in after.slots if name not in kept}
    expected = state.replace(calls=after.calls, slots={**after.slots, **frozen})
    if not tree_equal(expected, after):
        raise LawError(
            f"law 10, skipping: a bad batch changed the state:\n{tree_diff(expected, after)}\n"
            "The usual cause is a stage that moves its memory in a skipped step: let it keep the "
            "old where state.step has not moved, or, before fl.update, where the gradients are not "
            "finite. What is to move on, as a loss scale, is left out by its taken_back."
        )
    if float(metrics.get("skipped", 0)) != 1:
        raise LawError("law 10, skipping: the skipped step did not report skipped = 1")


def check_stable(step: Step, state: State, x: Any) -> None:
    """Law 11: the new state has the old one's structure, shapes, dtypes and devices.

    Raises:
        LawError: With the leaves that changed.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> check_stable(step, step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2))
    """
    after, _ = step(state, x)
    if not isinstance(after, State):
        raise LawError(
            f"law 11, stability: {name_of(step)} returned {type(after).__name__}, not a State"
        )
    old, new = dict(tree_items(state)), dict(tree_items(after))
    wrong = [path for path in {**old, **new} if path not in old or path not in new]
    wrong += [path for path in old if path in new and not alike(old[path], new[path])]
    if wrong:
        raise LawError(f"law 11, stability: {name_of(step)} changed the kind of {', '.join(wrong)}")
    if not same_structure(state, after):
        raise LawError(f"law 11, stability: {name_of(step)} changed the state's static structure")


def _init_of(step: Stage, metrics: Mapping[str, Any] | None) -> Callable[..., State]:
    """The `init` of a stage; a callback's is called with a state and an example of the metrics."""
    if not isinstance(step, Callback):
        return step.init
    example = dict(metrics or {})
    missing = [name for name in step.needs() if find(example, name) is None]
    if missing:
        raise TypeError(
            f"The memory of {step.describe()} is made from the first step's metrics; it needs "
            f"{', '.join(missing)}. Give an example: check_init(callback, model, "
            f'metrics={{"{missing[0]}": fl.Mean(1.0, 1)}}), or the metrics of a step.'
        )
    return lambda model, seed=0: step.init(start(model, seed), example)


def _kept_slots(step: Step, state: State) -> set[str]:
    """The slots whose memory is kept when a step is taken back."""
    parts = step.stages() if isinstance(step, Stage) else ()
    owned = [part for part in parts if part.slot is not None]
    return {
        part.slot
        for part in owned
        if part.slot is not None
        and state[part.slot] != {}
        and part.taken_back(state[part.slot]) == {}
    }


def _why_parts_differ(grad: GradStage, state: State, batch: Any, after: State, whole: Grads) -> str:
    """Why the gradients of parts are not that of the whole."""
    _, other = grad(state.replace(calls=state.calls + 1), batch)
    if not tree_equal(whole.mean, other.mean):
        return (
            "The loss draws random numbers, as dropout does, and each part draws its own, so this "
            "law is not about it. Check it without: a model with p=0."
        )
    if not tree_equal(after.buffers, state.buffers):
        return (
            "The model has batch statistics (BatchNorm), and each part its own, so this law is not "
            "about it. Check it without: with GroupNorm, or with these layers left out."
        )
    return _NO_MEAN


_NO_MEAN = (
    "The usual cause is a loss that is no mean over the batch's examples, but a sum, or a mean "
    "over something else, such as tokens: return fl.Mean(total, weight)."
)


def _why_resumed_differs(
    whole: State, step: Step, state: State, data: Any, steps: int, callbacks: Sequence[Any]
) -> str:
    """Why a resumed run ends elsewhere: whether a run that is not stopped would, too."""
    again = _last(run(step, state, data, steps=steps, callbacks=callbacks), state)
    if tree_equal(dict(tree_items(whole)), dict(tree_items(again))):
        return (
            "Without a stop it is the same each time. The usual causes: data that do not start "
            "at the state's cursor, or memory that is not in the state: a stage or callback keeps "
            "it in state[name], made by its init_state."
        )
    return (
        "It is not the same without a stop either, so it is no matter of saving. The usual causes: "
        "data in another order on each pass (fl.Batches and a DataLoader follow their seed), an "
        "iterator, which is read only once, or a step that keeps something outside of the state, "
        "such as a counter: testing.check_repeatable(step, state, batch) tells that."
    )


def _last(loop: Any, state: State) -> State:
    for state, _ in loop:  # noqa: B007
        pass
    return state

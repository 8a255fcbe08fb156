"""``find_batch_size``: the largest batch that fits into memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from fnloop.data.batches import START, Batches
from fnloop.data.bundle import Data
from fnloop.data.readers import check_part
from fnloop.effects.screens import screen
from fnloop.loop.checks import check_slots
from fnloop.loop.run import run
from fnloop.names.keywords import explained
from fnloop.stages.base import mesh_of
from fnloop.trees.show import short
from fnloop.tuning.batch_size_search import Attempt, BatchSizeSearch, largest
from fnloop.tuning.out_of_memory import is_out_of_memory
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.state import State


@explained
def find_batch_size(
    step: Any,
    state: State,
    data: Any,
    start: int = 2,
    max_size: int = 8192,
    steps: int = 3,
    search: Literal["power", "binary"] = "power",
    progress: bool | None = None,
) -> BatchSizeSearch:
    """Find the largest batch size at which a step does not run out of memory, by running it.

    Each size is tried by some whole steps (gradients, optimizer, averages) on one batch, which
    write in place where `fl.fit` would. Only a size that ran is suggested. `state` is the same
    afterwards to the bit, with its place in the data and its randomness. What a trial has allocated
    is freed before the next.

    A size fails with an error of PyTorch or Python that says so; any other error is raised. Where
    the system promises more memory than it has, it ends the process in place of raising an error:
    bound it, as with ``ulimit -v``.

    Args:
        step: A training step; a compiled one is compiled for each size.
        state: From ``step.init(model)``.
        data: `fl.Batches`, or what it takes; or a function ``size -> batch``. The first batch of
            each size is tried: where examples differ in length, give a function that makes the
            largest batch there may be.
        start: The first size, which is then doubled, or halved.
        max_size: The largest size to try; never more than there are examples.
        steps: Steps of each trial.
        search: ``"power"`` doubles until a size does not fit. ``"binary"`` goes on between the
            last two, down to one example. Memory is used a little differently by each step, so that
            the power of two is the safer one.
        progress: Whether to show the trials; default where somebody can see it.

    Returns:
        A `BatchSizeSearch` with ``suggestion``, None if not even one example fits, and ``trials``.

    Raises:
        TypeError: `data` cannot make batches of a size.
        ValueError: An argument is out of range, or the step is for many processes.

    >>> import torch, fnloop as fl
    >>> def loss(model, x):
    ...     if len(x) > 24:
    ...         raise MemoryError
    ...     return model(x).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> found = find_batch_size(step, state, torch.ones(100, 2), search="binary")
    >>> found.suggestion, [trial.size for trial in found.trials]
    (24, [2, 4, 8, 16, 32, 24, 28, 26, 25])
    """
    check_slots(step, state)
    mesh = mesh_of(step)
    if mesh is not None and mesh.data * mesh.tensor > 1:
        raise ValueError(
            f"find_batch_size is for one process, and this step is for {mesh}: a rank that runs "
            "out of memory ends the others. Try the share of one rank, without fl.shard."
        )
    check_part(data, "find_batch_size(data=...)")
    make, examples = _maker(data)
    start = as_count(start, "find_batch_size(start=...)", 1)
    most = as_count(max_size, "find_batch_size(max_size=...)", 1)
    most = most if examples is None else min(most, examples)
    steps = as_count(steps, "find_batch_size(steps=...)", 1)
    shown = screen() if progress is None or progress else None
    trials = list[Attempt]()

    def fits(size: int) -> bool:
        if shown:
            shown.draw(f"find_batch_size: trying {size:,}")
        trials.append(_tried(step, state, make, size, steps))
        if torch.accelerator.is_available():
            torch.get_device_module().empty_cache()  # blocks of other sizes
        if shown:
            shown.keep(f"find_batch_size: {trials[-1]}")
        return trials[-1].fits

    largest(fits, start, most, search)
    return BatchSizeSearch(tuple(trials), most)


def _tried(step: Any, state: State, make: Callable[[int], Any], size: int, steps: int) -> Attempt:
    try:
        return Attempt(size, True, _fastest(step, state, make(size), steps))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # The error is gone. Its traceback referred to what the step had allocated, perhaps in a circle.
    gc.collect()
    return Attempt(size, False)


def _fastest(step: Any, state: State, batch: Any, steps: int) -> float:
    """Run steps on one batch from `state`, which is kept; seconds of the fastest."""
    donating: Any = getattr(step, "donating", None)
    step = step if donating is None else donating()
    found, began = list[float](), time.perf_counter()
    state = state.replace(cursor=Cursor().tensor())
    for after, _ in run(step, state, [batch], steps=steps):
        int(after.step)  # waits for the device
        now = time.perf_counter()
        found.append(now - began)
        began = now
    return min(found)


def _maker(data: Any) -> tuple[Callable[[int], Any], int | None]:
    """A function that makes a batch of a size; and how many examples there are, if known."""
    if isinstance(data, Data):
        data = data.train
    if isinstance(data, Batches):
        return lambda size: _first(data.resized(size)), data.examples
    if callable(data):
        return data, None
    try:
        batches = Batches(data, 1)
    except TypeError as error:
        raise TypeError(
            "find_batch_size makes batches of many sizes: give it fl.Batches, what fl.Batches "
            f"takes, or a function size -> batch; got {short(data)}. Of a DataLoader, its dataset: "
            "fl.Batches(loader.dataset, 1, collate=loader.collate_fn)."
        ) from error
    return lambda size: _first(batches.resized(size)), batches.examples


def _first(batches: Batches) -> Any:
    return batches.at(START.tensor())[1]

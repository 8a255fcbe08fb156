"""What a function gives for each batch of an epoch: the model in evaluation mode, no gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fnloop._torch.freed_memory import keep_freed
from fnloop._torch.random import seeded
from fnloop.data.batches import START
from fnloop.data.fingerprint import checksum
from fnloop.data.lent import Lent
from fnloop.data.sources import as_source, rest_of_epoch
from fnloop.stages.functions import takes_state
from fnloop.stages.loss_result import explain
from fnloop.trees.show import short
from fnloop.values.averaged import choose_buffers, choose_params
from fnloop.values.close_look import Unwritten
from fnloop.values.cursor import Cursor
from fnloop.values.key import fold
from fnloop.values.placing import whole_state
from fnloop.values.stacked import data_key, each_member
from fnloop.values.state import State


def whole(state: Any, place: str) -> State:
    """The state as one process has it; all ranks must call it.

    Raises:
        TypeError: It is none; `place` is who asks.
    """
    if not isinstance(state, State):
        raise TypeError(f"{place} takes a state, it was given {type(state).__name__}.")
    return whole_state(state)


def outputs_of(
    fn: Any,
    state: State,
    data: Any,
    params: str | None,
    place: str,
    batches: int | None = None,
    share: tuple[int, int] = (0, 1),
    sums: list[int] | None = None,
    start: Cursor = START,
) -> Iterator[tuple[Cursor, Any, Any]]:
    """The batches of one epoch, at most `batches`: cursor after it, batch, results of `fn` for it.

    There is one result, or one for each member of a population.

    Of `n` ranks each has every n-th batch: `share` is this rank, and `n`. Checksums of what all of
    them have are added to `sums`. An epoch of which something is done already goes on at `start`.
    """
    keep_freed()
    calls = [_call(fn, own, params, place) for own in each_member(state)]
    (rank, ranks), source, who = share, as_source(data), f"The function {short(fn)}"
    epoch: Iterator[Any] = rest_of_epoch(source, data_key(state), place == "predict", start)
    if ranks > 1 and sums is not None:
        epoch = _summed(epoch, sums)
    for i, (after, batch) in enumerate(itertools.islice(epoch, batches), start.count):
        if i % ranks == rank:
            lent = Lent(source, batch)
            results = [call(batch, i) for call in calls]
            lent.check(who)
            yield after, batch, results


def _call(fn: Any, state: State, params: str | None, place: str) -> Callable[[Any, int], Any]:
    """A function of a batch and its number: the result of `fn` for the model of `state`."""
    chosen, buffers = choose_params(state, params), choose_buffers(state, params)
    wants_state = takes_state(fn)
    views = {name: p.detach() for name, p in chosen.items()}  # an assignment to .data stays here
    unwritten = Unwritten(chosen)
    key, calls, device = int(state.key), int(state.calls), state.step.device

    def call(batch: Any, i: int) -> Any:
        def output(model: Any) -> Any:
            return fn(model, batch, state) if wants_state else fn(model, batch)

        # Enter these contexts only around the call, not while the data is read.
        with torch.no_grad(), seeded(fold(key, calls, place, i), device):
            try:
                result, _ = state.skeleton.call(output, views, buffers, False, fn)
                unwritten.check(fn)
            except Exception as error:
                explain(error, fn, state, batch)
                raise
        return result

    return call


def _summed(batches: Iterator[Any], sums: list[int]) -> Iterator[Any]:
    for after, batch in batches:
        sums.append(checksum(batch))
        yield after, batch

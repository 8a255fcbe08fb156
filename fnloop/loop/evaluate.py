"""``evaluate`` and ``predict``: the model in evaluation mode, without gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fnloop._torch.freed_memory import keep_freed
from fnloop._torch.random import seeded
from fnloop.data.bundle import Data, sets_of
from fnloop.data.divided import refuse_divided
from fnloop.data.fingerprint import checksum
from fnloop.data.iterables import is_once
from fnloop.data.sources import as_source, one_epoch
from fnloop.distributed.gates import RankError, gate, leave
from fnloop.distributed.mesh import Mesh
from fnloop.loop.ranks import SAME_DATA
from fnloop.loop.statistics import refresh_batchnorm
from fnloop.names.keywords import explained
from fnloop.stages.functions import as_loss, takes_state
from fnloop.stages.loss_result import explain, read_metrics
from fnloop.values.averaged import choose_buffers, choose_params
from fnloop.values.close_look import Unwritten
from fnloop.values.key import fold
from fnloop.values.merging import merge_all, numbers
from fnloop.values.placing import whole_state
from fnloop.values.state import State


@explained
def evaluate(
    fn: Callable[..., Any],
    state: State,
    data: Any,
    params: str | None = None,
    statistics: Any = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Metrics of the model over all of `data`, weighted: a short last batch counts for less.

    Args:
        fn: A loss, ``(model, batch) -> loss`` or ``(loss, metrics)``; or a function that returns a
            dict of metrics.
        state: The state with the model; it is not changed.
        data: Whatever `fl.run` takes; one epoch of it. Of `fl.Data`, its part ``validate`` or
            ``test``, whichever there is. Several sets by name, ``{"day": a, "night": b}``, have
            their metrics under these names: ``"day/loss"``. (A dict of tensors is one batch.)
        params: A slot to take the parameters from, such as ``"ema"``; default the live ones.
        statistics: Training data, to compute BatchNorm's running statistics from, as
            `fl.refresh_batchnorm` does: those in the state belong to the live parameters, and
            averaged ones need their own. Default for them, where `data` is `fl.Data`, its part
            ``train``, if that is `fl.Batches`. ``"live"`` takes those that are there.
        mesh: The ranks that call it together: each evaluates its share of the batches.

    Raises:
        ValueError: The data gives no batch; or it is `fl.Data` with both parts, or neither; or
            averaged parameters have no statistics.

    >>> import fnloop as fl
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(model)
    >>> state = state.replace(params={"weight": torch.ones(1, 1)})
    >>> evaluate(lambda m, x: m(x).mean(), state, fl.Batches(torch.arange(5.0).reshape(5, 1), 2))
    {'loss': 2.0}
    """
    if isinstance(data, Data):
        statistics = data if params and statistics is None else statistics
        data = data.only("evaluate", "validate", "test")
    return numbers(evaluate_metrics(fn, state, data, params, statistics=statistics, mesh=mesh))


def evaluate_metrics(
    fn: Callable[..., Any],
    state: State,
    data: Any,
    params: str | None = None,
    batches: int | None = None,
    each: Callable[[], None] | None = None,
    statistics: Any = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """As `evaluate`, but metrics and not numbers.

    Args:
        fn, state, data, params, statistics, mesh: As in `evaluate`.
        batches: Evaluate only so many, the first.
        each: Called after each batch.
    """
    mesh, state = mesh or Mesh(), _whole(state, "evaluate")
    if isinstance(statistics, str):
        if statistics != "live":
            raise ValueError(f'statistics= takes training data, or "live", got {statistics!r}.')
        state, params = state.replace(params=choose_params(state, params)), None
    elif state.skeleton.statistics and (given := statistics_data(statistics)) is not None:
        state = refresh_batchnorm(fn, state, given, params, mesh)
    sets = sets_of(data)
    if sets is not None:
        return {
            f"{name}/{metric}": value
            for name, part in sets.items()
            for metric, value in evaluate_metrics(
                fn, state, part, params, batches, each, mesh=mesh
            ).items()
        }
    try:
        own = _own_share(fn, state, data, params, batches, each, mesh)
    except Exception as error:
        leave(mesh, error)
        raise
    gate(mesh, "an evaluation")
    shares, sums = zip(*mesh.exchange(own), strict=True)
    if len(set(sums)) > 1:
        raise RankError(f"The ranks were given different batches to evaluate. {SAME_DATA}")
    parts = [part for share in shares for part in share]
    if not parts:
        raise ValueError("There is nothing to evaluate: the data gave no batch.")
    return merge_all(parts)


def statistics_data(given: Any) -> Any:
    """Data to compute statistics from; None if there is none.

    Of `fl.Data` it is ``train``, if that is `fl.Batches`: an epoch of a loader may take long, so it
    has to be asked for.
    """
    if not isinstance(given, Data):
        return given
    source = None if is_once(given.train) else as_source(given.train)
    about: Any = getattr(source, "about", dict)()
    return source if about and about.get("kind") == "Batches" else None


def _own_share(
    fn: Callable[..., Any],
    state: State,
    data: Any,
    params: str | None,
    batches: int | None,
    each: Callable[[], None] | None,
    mesh: Mesh,
) -> tuple[list[dict[str, Any]], int]:
    """The metrics of this rank's batches, merged, and an empty list if it has none.

    And a checksum of the batches of all ranks, which each has read.
    """
    sums = list[int]()
    who, parts = as_loss(fn, "fn(model, batch)"), list[dict[str, Any]]()
    if mesh.data > 1:
        refuse_divided(data)
    share = (mesh.rank, mesh.data)
    for batch, result in _outputs(who, state, data, params, "evaluate", batches, share, sums):
        parts.append(read_metrics(result, batch, who))
        if each is not None:
            each()
        if len(parts) == 64:
            parts = [merge_all(parts)]
    return [merge_all(parts)] if parts else [], hash(tuple(sums))


@explained
def predict(
    fn: Callable[..., Any], state: State, data: Any, params: str | None = None
) -> Iterator[Any]:
    """Outputs of the model, batch by batch, in the order of `data`.

    Args:
        fn: ``(model, batch) -> output``.
        state: The state with the model; it is not changed.
        data: Whatever `fl.run` takes; one epoch of it, not shuffled. Of `fl.Data`, ``predict``.
        params: A slot to take the parameters from, such as ``"ema"``; default the live ones.

    Yields:
        What `fn` returns.

    Raises:
        ValueError: The data is shuffled: `fl.Batches` or a loader that shuffles, a sampler in
            another order, or a stream that draws random numbers. Or averaged parameters have no
            statistics of BatchNorm (`fl.refresh_batchnorm`).

    >>> import fnloop as fl
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(torch.nn.Linear(1, 2))
    >>> data = fl.Batches(torch.zeros(5, 1), 2, shuffle=False)
    >>> [len(y) for y in predict(lambda m, x: m(x), state, data)]
    [2, 2, 1]
    """
    if isinstance(data, Data):
        data = data.only("predict", "predict")
    who = as_loss(fn, "fn(model, batch)")
    for _, output in _outputs(who, _whole(state, "predict"), data, params, "predict"):
        yield output


def _whole(state: Any, place: str) -> State:
    if not isinstance(state, State):
        raise TypeError(f"{place} takes a state, it was given {type(state).__name__}.")
    return whole_state(state)


def _outputs(
    fn: Any,
    state: State,
    data: Any,
    params: str | None,
    place: str,
    batches: int | None = None,
    share: tuple[int, int] = (0, 1),
    sums: list[int] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Each batch of one epoch, at most `batches`, and the result of `fn` for it.

    Of `n` ranks each has every n-th batch: `share` is this rank, and `n`. Checksums of what all of
    them have are added to `sums`.
    """
    keep_freed()
    chosen, buffers = choose_params(state, params), choose_buffers(state, params)
    wants_state = takes_state(fn)
    views = {name: p.detach() for name, p in chosen.items()}  # an assignment to .data stays here
    unwritten = Unwritten(chosen)
    key, calls, device = int(state.key), int(state.calls), state.step.device
    rank, ranks = share
    epoch: Iterator[Any] = one_epoch(data, key, ordered=place == "predict")
    if ranks > 1 and sums is not None:
        epoch = _summed(epoch, sums)
    for i, batch in itertools.islice(enumerate(epoch), rank, batches, ranks):

        def output(model: Any, batch: Any = batch) -> Any:
            return fn(model, batch, state) if wants_state else fn(model, batch)

        # Enter these contexts only around the call, not while the data is read.
        with torch.no_grad(), seeded(fold(key, calls, place, i), device):
            try:
                result, _ = state.skeleton.call(output, views, buffers, False, fn)
                unwritten.check(fn)
            except Exception as error:
                explain(error, fn, state, batch)
                raise
        yield batch, result


def _summed(batches: Iterator[Any], sums: list[int]) -> Iterator[Any]:
    for batch in batches:
        sums.append(checksum(batch))
        yield batch

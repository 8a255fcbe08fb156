"""``evaluate``: metrics of the model in evaluation mode, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fnloop.data.bundle import Data, sets_of
from fnloop.data.divided import refuse_divided
from fnloop.data.iterables import is_once
from fnloop.data.readers import check_data
from fnloop.data.sources import as_source
from fnloop.distributed.gates import RankError, gate, leave
from fnloop.distributed.mesh import Mesh
from fnloop.loop.each_batch import outputs_of, whole
from fnloop.loop.ranks import SAME_DATA
from fnloop.loop.statistics import refresh_batchnorm
from fnloop.names.keywords import explained
from fnloop.stages.functions import as_loss
from fnloop.stages.loss_result import read_metrics
from fnloop.values.averaged import choose_params
from fnloop.values.member_metrics import beside
from fnloop.values.merging import merge_all, numbers
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

    The model is in evaluation mode, without gradients; a loss that needs some (a gradient penalty)
    computes them under ``with torch.enable_grad():``. For each batch its buffers are those of the
    state: what it writes to them (a hidden state) is dropped, and told once, so that the metrics
    depend neither on the order of the batches nor on ranks.

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

    >>> import torch, fnloop as fl
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(model)
    >>> state = state.replace(params={"weight": torch.ones(1, 1)})
    >>> evaluate(lambda m, x: m(x).mean(), state, fl.Batches(torch.arange(5.0).reshape(5, 1), 2))
    {'loss': 2.0}
    """
    check_data(statistics, "evaluate(statistics=...)")
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
    mesh, state = mesh or Mesh(), whole(state, "evaluate")
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
    for _, batch, result in outputs_of(who, state, data, params, "evaluate", batches, share, sums):
        parts.append(beside([read_metrics(own, batch, who) for own in result], state))
        if each is not None:
            each()
        if len(parts) == 64:
            parts = [merge_all(parts)]
    return [merge_all(parts)] if parts else [], hash(tuple(sums))

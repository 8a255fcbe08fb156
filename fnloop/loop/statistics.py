"""``refresh_batchnorm``: BatchNorm's running statistics for other parameters."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop._torch.random import seeded
from fnloop.data.divided import refuse_divided
from fnloop.data.iterables import is_once
from fnloop.data.lent import Lent
from fnloop.data.readers import check_part
from fnloop.data.sources import as_source, one_epoch
from fnloop.distributed.gates import gate, leave
from fnloop.distributed.mesh import Mesh
from fnloop.effects.activity import Activity
from fnloop.names.keywords import explained
from fnloop.stages.functions import as_loss, takes_state
from fnloop.stages.loss_result import explain
from fnloop.trees.show import short
from fnloop.values.averaged import choose_params, put_statistics
from fnloop.values.key import fold
from fnloop.values.placing import whole_state
from fnloop.values.stacked import by_member, members_of
from fnloop.values.state import State


@explained
def refresh_batchnorm(
    fn: Callable[..., Any],
    state: State,
    data: Any,
    params: str | None = None,
    mesh: Mesh | None = None,
) -> State:
    """Compute BatchNorm's running statistics anew, for the parameters that are to be evaluated.

    The running statistics of a training run belong to its live parameters. Averaged ones
    (``params="ema"``) have other activations, and need statistics of their own. This runs the model
    over `data` in training mode, dropout included, as ``torch.optim.swa_utils.update_bn`` does.
    Each layer's mean and variance are those of all its values together, where torch takes the mean
    over batches: so a short batch counts for less, and the size of batches does not matter to the
    first layer.

    Args:
        fn: A loss, ``(model, batch) -> loss``, or any function that runs the model on a batch.
        state: The state; it is not changed.
        data: Training data, or a part of it that is large enough, such as
            ``fl.data.limit(train_data, 50)``; one epoch of it. Of `fl.Data`, ``train``.
        params: A slot to take the parameters from, such as ``"ema"``; default the live ones.
        mesh: The ranks that call it together: each runs its share of the batches.

    Returns:
        A state with new running statistics: in ``buffers`` for the live parameters, else in a slot
        beside that of the average, where `fl.evaluate`, `fl.predict` and `fl.to_module` find them.
        They are those of the average as it is now, and no longer count after the next step.

    Raises:
        TypeError: The data is an iterator, which would be exhausted.
        ValueError: The model has no BatchNorm with running statistics that training moves, or `fn`
            runs none; or the data has no batch.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))
    >>> model, data = torch.nn.BatchNorm1d(1), fl.Batches(torch.arange(5.0)[:, None], 3)
    >>> state = fl.refresh_batchnorm(loss, step.init(model), data, params="ema")
    >>> averaged = fl.to_module(state, params="ema")
    >>> averaged.running_mean.tolist(), averaged.running_var.tolist()
    ([2.0], [2.5])
    """
    fn = as_loss(fn, "fn(model, batch)")
    check_part(data, "data")
    if members_of(state) is not None:
        return by_member(lambda own: refresh_batchnorm(fn, own, data, params, mesh), state)
    mesh = mesh or Mesh()
    try:
        state = whole_state(state)
        own = _own_moments(fn, state, data, params, mesh)
    except Exception as error:
        leave(mesh, error)
        raise
    gate(mesh, "the statistics of BatchNorm")
    shares, found = mesh.exchange(own), dict[str, Tensor]()
    for path, (mean, variance) in state.skeleton.statistics.items():
        parts = [share[path] for share in shares if path in share]
        if parts:
            total = _Moments.merged(parts)
            found[mean] = total.mean.to(state.buffers[mean])
            found[variance] = total.variance.to(state.buffers[variance])
    if not found:
        raise ValueError(
            "There is nothing to compute statistics from: the function that was given runs no "
            "BatchNorm of the model."
        )
    return put_statistics(state, params, found)


class _Moments(NamedTuple):
    """Count, mean and sum of squares about the mean of each channel, in float64 on the CPU."""

    values: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Moments:
        """Those of a layer's input, whose channels are its second dimension."""
        others = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(x.detach().double(), others, correction=0)
        count = x.numel() // x.shape[1]
        return cls(count, mean.cpu(), variance.cpu() * count)

    @classmethod
    def merged(cls, parts: Iterable[_Moments]) -> _Moments:
        """Those of all parts together (Chan, Golub and LeVeque, 1983)."""
        counts, means, squares = zip(*parts, strict=True)
        weights = torch.tensor(counts, dtype=torch.float64)[:, None]
        stacked = torch.stack(means)
        mean = (weights * stacked).sum(0) / weights.sum()
        between = weights * (stacked - mean).square()
        return cls(sum(counts), mean, torch.stack(squares).sum(0) + between.sum(0))

    @property
    def variance(self) -> Tensor:
        """The unbiased one, as BatchNorm's."""
        return self.squares / max(1, self.values - 1)


def _own_moments(
    fn: Callable[..., Any], state: State, data: Any, params: str | None, mesh: Mesh
) -> dict[str, _Moments]:
    """What this rank's share of the batches puts into each layer, by its path."""
    if not state.skeleton.statistics:
        raise ValueError(
            "The model has no BatchNorm with running statistics that training moves, so there is "
            "nothing to compute."
        )
    if is_once(data):
        raise TypeError(
            f"The {type(data).__name__} is an iterator, and an epoch of it would be gone. Compute "
            "statistics from data that can be read again: a list, fl.Batches or a DataLoader."
        )
    if mesh.data > 1:
        refuse_divided(data)
    who = as_loss(fn, "fn(model, batch)")
    chosen, wants_state = choose_params(state, params), takes_state(who)
    key, calls, device = int(state.key), int(state.calls), state.step.device
    found: dict[str, _Moments] = {}
    source, name = as_source(data), f"The function {short(who)}"
    with Activity("statistics") as activity:
        share = itertools.islice(enumerate(one_epoch(source, key)), mesh.rank, None, mesh.data)
        for i, batch in share:
            lent = Lent(source, batch)

            def run(model: Any, batch: Any = batch) -> None:
                with _listening(model, state.skeleton.statistics, found):
                    _ = who(model, batch, state) if wants_state else who(model, batch)

            with torch.no_grad(), seeded(fold(key, calls, "refresh_batchnorm", i), device):
                try:
                    state.skeleton.call(run, chosen, state.buffers, training=True)
                except Exception as error:
                    explain(error, who, state, batch)
                    raise
            lent.check(name)
            activity.advance()
    return found


@contextlib.contextmanager
def _listening(
    model: Any, layers: Mapping[str, Any], found: dict[str, _Moments]
) -> Generator[None]:
    """A context manager in which what `layers` of the model are given is added to `found`."""

    def hook(path: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            new = _Moments.of(inputs[0])
            found[path] = _Moments.merged([found[path], new]) if path in found else new

        return add

    hooks = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in layers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()

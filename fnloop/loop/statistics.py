"""``refresh_statistics``: BatchNorm's running statistics for other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fnloop._torch.random import seeded
from fnloop.data.sources import one_epoch
from fnloop.effects.activity import Activity
from fnloop.names.keywords import explained
from fnloop.stages.functions import as_loss, takes_state
from fnloop.stages.loss_result import explain
from fnloop.values.key import fold
from fnloop.values.start import choose_params
from fnloop.values.state import State

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@explained
def refresh_statistics(
    fn: Callable[..., Any], state: State, data: Any, params: str | None = None
) -> State:
    """Compute BatchNorm's running statistics anew, for the parameters that are to be evaluated.

    The running statistics of a training run belong to its live parameters. Averaged ones
    (``params="ema"``) have other activations, and are evaluated better with statistics of their
    own. This runs the model over `data` in training mode, as ``torch.optim.swa_utils.update_bn``
    does, and takes mean and variance of all values together: a short batch counts for less.

    Args:
        fn: A loss, ``(model, batch) -> loss``, or any function that runs the model on a batch.
        state: The state; it is not changed.
        data: Training data, or a part of it that is large enough; one epoch of it.
        params: A slot to take the parameters from, such as ``"ema"``; default the live ones.

    Returns:
        The state with new running statistics. Use it for evaluation and export; training goes on
        from the old one.

    Raises:
        TypeError: The model is no ``nn.Module``.
        ValueError: It has no BatchNorm with running statistics, or the data gave no batch.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))
    >>> state, data = step.init(nn.BatchNorm1d(1)), fl.Batches(torch.arange(5.0)[:, None], 3)
    >>> fresh = refresh_statistics(loss, state, data, params="ema")
    >>> fresh.buffers["running_mean"].tolist(), fresh.buffers["running_var"].tolist()
    ([2.0], [2.5])
    """
    who = as_loss(fn, "fn(model, batch)")
    chosen, wants_state = choose_params(state, params), takes_state(who)
    key, calls, device = int(state.key), int(state.calls), state.step.device
    moments: dict[str, _Moments] = {}
    with Activity("statistics") as activity:
        for i, batch in enumerate(one_epoch(data, key)):

            def run(model: Any, batch: Any = batch) -> None:
                with _Listening(model, moments):
                    _ = who(model, batch, state) if wants_state else who(model, batch)

            with torch.no_grad(), seeded(fold(key, calls, "refresh_statistics", i), device):
                try:
                    state.skeleton.call(run, chosen, state.buffers, training=True)
                except Exception as error:
                    explain(error, who, state, batch)
                    raise
            activity.advance()
    if not moments:
        raise ValueError("There is nothing to compute statistics from: the data gave no batch.")
    found = dict(state.buffers.items())
    for name, own in moments.items():
        for buffer, value in own.statistics().items():
            full = f"{name}.{buffer}".lstrip(".")
            found[full] = value.to(found[full])
    return state.replace(buffers=state.buffers.like(found))


class _Moments:
    """Count, sum and sum of squares of each channel, in float64, about a first value."""

    def __init__(self) -> None:
        self._count = 0
        self._shift: Tensor | None = None
        self._sum: Any = 0
        self._squares: Any = 0

    def add(self, x: Tensor) -> None:
        others = [d for d in range(x.ndim) if d != 1]
        x = x.detach().double()
        if self._shift is None:  # keeps the squares small: their differences count
            self._shift = x.mean(others, keepdim=True)
        x = x - self._shift
        self._count += x.numel() // x.shape[1]
        self._sum = self._sum + x.sum(others)
        self._squares = self._squares + x.square().sum(others)

    def statistics(self) -> dict[str, Tensor]:
        """The mean and, as in BatchNorm, the unbiased variance."""
        assert self._shift is not None
        mean = self._sum / self._count
        variance = (self._squares - self._count * mean.square()) / max(1, self._count - 1)
        return {"running_mean": mean + self._shift.flatten(), "running_var": variance}


class _Listening:
    """A block in which the inputs of all BatchNorms are added to `moments`."""

    def __init__(self, model: Any, moments: dict[str, _Moments]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                "refresh_statistics knows the BatchNorms of an nn.Module; the model is "
                f"{type(model).__name__}."
            )
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _KINDS) and module.running_mean is not None
        }
        if not self._modules:
            raise ValueError(
                "The model has no BatchNorm with running statistics, so nothing is to be refreshed."
            )
        self._moments = moments

    def __enter__(self) -> None:
        self._hooks = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in self._modules.items()
            if module.training
        ]

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            self._moments.setdefault(name, _Moments()).add(inputs[0])

        return add

"""What is often shown: histograms of weights and of gradients, and confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.effects.effect import Run
from fnloop.optim.patterns import Where, as_where, check_patterns, chosen
from fnloop.stages.base import Stage
from fnloop.stages.grad import grad
from fnloop.stages.pipe import pipe
from fnloop.trackers.distributions import Histogram
from fnloop.trackers.pictures import Image
from fnloop.trackers.showing import show
from fnloop.trackers.shown import Shown
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Metrics
from fnloop.values.parameter_attributes import knowing
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


class histograms(show):
    """Histograms of parameters, called ``params/`` and the parameter's name.

    Args:
        where: Which: a pattern of names, such as ``"*.weight"`` or ``"head"``, several, or a
            function of a parameter's name and tensor.
        bins: As for `fl.trackers.Histogram`.

    >>> import fnloop as fl
    >>> effect = fl.track(fl.trackers.Aim("runs"), fl.every(500, histograms("*.weight")))
    """

    def __init__(
        self, where: str | Iterable[str] | Callable[[str, Tensor], bool] = "*", bins: int = 64
    ) -> None:
        self.where, self.bins = as_where(where), as_count(bins, "histograms(bins=...)", 1)
        super().__init__(self._counted, name="histograms")

    def check_run(self, run: Run) -> None:
        super().check_run(run)
        _check(self.where, run.state, "histograms")

    def _counted(self, state: State, metrics: Metrics) -> Mapping[str, Shown]:
        with knowing(state.skeleton.attributes):
            return _counted("params", state.params, self.where, self.bins)


class gradients(show):
    """Histograms of the gradients of a batch, called ``grads/`` and the parameter's name.

    They are computed anew, by a call of the gradient stage whose state is not kept: the run does
    not know of it, and steps at which it does not come cost nothing.

    Args:
        loss: The loss, or a gradient stage such as ``fl.pipe(loss, fl.grad, fl.amp("bf16"))``.
        batch: The batch, on the device of the state.
        where: As for `fl.trackers.histograms`.
        bins: As for `fl.trackers.Histogram`.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, x: model(x).square().mean()
    >>> view = fl.every(500, gradients(loss, torch.ones(4, 2), "*.weight"))
    """

    def __init__(
        self,
        loss: Any,
        batch: Any,
        where: str | Iterable[str] | Callable[[str, Tensor], bool] = "*",
        bins: int = 64,
    ) -> None:
        self.stage = loss if isinstance(loss, Stage) else pipe(loss, grad)
        if self.stage.kind != "grad":
            raise TypeError(
                f"gradients takes a loss, or a gradient stage that ends before update; got "
                f"{self.stage.describe()}. Name the part before it: grads = fl.pipe(loss, fl.grad)."
            )
        self.batch, self.where = batch, as_where(where)
        self.bins = as_count(bins, "gradients(bins=...)", 1)
        super().__init__(self._counted, name="gradients")

    def check_run(self, run: Run) -> None:
        super().check_run(run)
        _check(self.where, run.state, "gradients")

    def _counted(self, state: State, metrics: Metrics) -> Mapping[str, Shown]:
        _, grads = self.stage(state, self.batch)
        with knowing(state.skeleton.attributes):
            return _counted("grads", grads.mean, self.where, self.bins)


class matrix(show):
    """A confusion matrix as a picture, whenever its metric is reported.

    Args:
        metric: The name of an `fl.metrics.confusion`, such as ``"val/confusion"``.
        classes: Names of the classes; default their numbers.

    Raises:
        ImportError: matplotlib is missing: ``pip install fnloop[plot]``.

    >>> import fnloop as fl
    >>> effect = fl.track(fl.trackers.Aim("runs"), matrix("val/confusion", ["cat", "dog"]))
    """

    def __init__(self, metric: str, classes: Sequence[str] | None = None) -> None:
        self.metric, self.classes = metric, classes
        super().__init__(self._drawn, name="matrix")

    def needs(self) -> tuple[str, ...]:
        return (self.metric,)

    def open(self, run: Run) -> None:
        super().open(run)
        _figure()  # an error before the run, and not at the first validation

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return False

    def _drawn(self, state: State, metrics: Metrics) -> Mapping[str, Shown]:
        if self.metric not in metrics:
            return {}
        counts = getattr(metrics[self.metric], "matrix", None)
        if not isinstance(counts, Tensor) or counts.ndim != 2:
            raise TypeError(
                f"matrix draws a metric made by fl.metrics.confusion, and {self.metric!r} is "
                f"{type(metrics[self.metric]).__name__}."
            )
        return {self.metric: Image(_draw(counts.cpu(), self.classes))}


def _counted(prefix: str, tensors: Tensors, where: Where, bins: int) -> dict[str, Shown]:
    return {f"{prefix}/{name}": Histogram(tensors[name], bins) for name in chosen(where, tensors)}


def _check(where: Where, state: State, who: str) -> None:
    if isinstance(where, tuple):
        check_patterns(who, where, state.params)
    if state.params.layout.mesh is not None:
        raise ValueError(
            f"{who} counts whole parameters, on one rank, and here each rank has only a part of "
            'them. The plan "zero2" leaves them whole; or count after the run: fl.gather(state).'
        )


def _draw(counts: Tensor, classes: Sequence[str] | None) -> Any:
    number = len(counts)
    names = [str(i) for i in range(number)] if classes is None else list(classes)
    if len(names) != number:
        raise ValueError(f"matrix has {len(names)} names for {number} classes.")
    side = min(12.0, 2.0 + 0.45 * number)
    figure = _figure()
    figure.set_size_inches(side, side)
    axes = figure.add_subplot()
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("target")
    if number <= 40:
        turn = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(number), names, fontsize=8, rotation=turn)
        axes.set_yticks(range(number), names, fontsize=8)
    if number <= 20:
        for row, column in torch.nonzero(counts).tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    return figure


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matrix draws with matplotlib, which is not installed: pip install fnloop[plot]"
        ) from error
    return Figure(dpi=100, layout="constrained")

"""Adapter for metrics of torchmetrics."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from operator import itemgetter
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.trees.nodes import static, tree, tree_map
from fnloop.values.metrics import Metric


class MetricTemplate:
    """A private copy of a torchmetrics object, compared by identity.

    The object itself cannot be a static field, because its ``==`` builds a new metric.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = copy.deepcopy(metric)
        self.metric.reset()
        self.lock = threading.RLock()
        # A state with a reduction is merged by it. For others (lists, raw tensors, concatenations)
        # the parts are kept.
        self.folded: dict[str, Callable[..., Any]] = {}
        for name, reduction in self.metric._reductions.items():
            kind = getattr(reduction, "__name__", "")
            is_list = isinstance(self.metric._defaults[name], list)
            if not is_list and reduction is not None and kind != "dim_zero_cat":
                self.folded[name] = reduction

    def __repr__(self) -> str:
        return repr(self.metric)

    def __reduce__(self) -> Any:  # a lock cannot be sent to other ranks
        return MetricTemplate, (self.metric,)


@tree
class Torchmetric(Metric):
    """The state of a torchmetrics metric after some updates; see `fl.metrics.from_torchmetrics`.

    Attributes:
        folded: States that are reduced when merged, by name.
        parts: All other states by name, one dict per update.
        updates: float64[]; number of updates.
        part_updates: For each of `parts`, float64[]: 1, or 0 if that update was skipped.
    """

    reduction: ClassVar[str] = "merge"
    stacks: ClassVar[bool] = True  # it tells members apart itself

    folded: dict[str, Tensor]
    parts: tuple[dict[str, Any], ...]
    updates: Tensor
    part_updates: tuple[Tensor, ...]
    template: Any = static()

    def merge(self, other: Self) -> Self:
        folded = {
            name: _fold(
                self.template.folded[name], (a, self.updates), (other.folded[name], other.updates)
            )
            for name, a in self.folded.items()
        }
        return type(self)(
            folded,
            self.parts + other.parts,
            self.updates + other.updates,
            self.part_updates + other.part_updates,
            self.template,
        )

    def empty(self) -> Self:
        defaults = self.template.metric._defaults
        folded = {
            name: defaults[name].to(x.device, x.dtype).expand_as(x)
            for name, x in self.folded.items()
        }
        none = torch.zeros_like(self.updates)
        return type(self)(folded, self.parts, none, (none,) * len(self.parts), self.template)

    def value(self) -> Any:
        if self.updates.ndim:  # of a population: a metric for each member
            return _by_member([tree_map(itemgetter(i), self) for i in range(len(self.updates))])
        if not int(self.updates):
            return float("nan")
        with self.template.lock:
            metric = self.template.metric
            metric.reset()
            metric.to(self.updates.device)
            filled(metric, self)
            try:
                return metric.compute()
            finally:
                metric.reset()


@explained
def from_torchmetrics(metric: Any) -> Callable[..., Torchmetric]:
    """Make a pure metric function, such as `fl.metrics.accuracy`, from a torchmetrics metric.

    `metric` is copied and never updated. States merge by the reductions that the metric declares
    for distributed training, so the result is correct for every metric that is correct there. It
    only works eagerly, not in `fl.compile`. Of a population the value has an entry for each member;
    metrics that look at values (many do to validate arguments: ``validate_args=False``) take
    ``mode="loop"`` of `fl.ensemble` and `fl.sweep`.

    Args:
        metric: An instance of ``torchmetrics.Metric``.

    Returns:
        A function with the arguments of ``metric.update``. It returns an `fl.metrics.Metric`.

    Raises:
        TypeError: `metric` is not such an instance, or one that wraps others and keeps no states
            of its own. Convert a ``MetricCollection`` by member.

    >>> from torchmetrics import MeanSquaredError
    >>> error = from_torchmetrics(MeanSquaredError())
    >>> a = error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    >>> float(a.merge(error(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]))))
    2.0
    """
    if isinstance(metric, type) or not all(
        hasattr(metric, name) for name in ("_defaults", "_reductions", "metric_state")
    ):
        name = metric.__name__ if isinstance(metric, type) else type(metric).__name__
        raise TypeError(
            f"from_torchmetrics takes an instance of a torchmetrics.Metric; it was given {name}."
        )
    if others := _with_states_of_their_own(metric):
        raise TypeError(
            f"{type(metric).__name__} is computed from the states of other metrics in it "
            f"({', '.join(others)}), which cannot be merged for it. Convert these by themselves, "
            "and compute what it gives from their values, in a callback."
        )
    template = MetricTemplate(metric)

    def measure(*args: Any, **kwargs: Any) -> Torchmetric:
        tensors = [x.detach() if isinstance(x, Tensor) else x for x in args]
        named = {k: x.detach() if isinstance(x, Tensor) else x for k, x in kwargs.items()}
        device = next(
            (x.device for x in (*tensors, *named.values()) if isinstance(x, Tensor)), None
        )
        with template.lock, torch.no_grad():
            if device is not None:
                template.metric.to(device)
            template.metric.reset()
            template.metric.update(*tensors, **named)
            found = taken(template.metric, template, device)
            template.metric.reset()
        return found

    return measure


def taken(metric: Any, template: MetricTemplate, device: torch.device | None = None) -> Torchmetric:
    """What an object of torchmetrics has gathered since it was reset, as a value.

    Args:
        metric: The object; its states are copied where it changes them in place.
        template: Of the same metric.
        device: Where the number of updates is kept; default that of the first state.
    """
    # reset clears lists in place, so copy them; it replaces tensors.
    states: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in metric.metric_state.items()
    }
    if device is None:
        device = next((x.device for x in states.values() if isinstance(x, Tensor)), None)
    folded = {name: x for name, x in states.items() if name in template.folded}
    rest = {name: x for name, x in states.items() if name not in template.folded}
    updates = torch.full((), metric._update_count, dtype=torch.float64, device=device)
    one = torch.ones_like(updates)
    return Torchmetric(folded, (rest,) if rest else (), updates, (one,) if rest else (), template)


def filled(metric: Any, value: Torchmetric) -> None:
    """Put what was `taken`, and perhaps merged, into an object of the same metric.

    What ranks share is merged already, so the object computes of what it has.
    """
    keep_apart(metric)
    parts = [part for part, n in zip(value.parts, value.part_updates, strict=True) if n]
    for name, state in {**value.folded, **_joined(parts, metric)}.items():
        setattr(metric, name, state)
    metric._update_count = int(value.updates)
    metric._computed = None


def _with_states_of_their_own(metric: Any) -> list[str]:
    """The metrics inside of a metric that keep states which are not states of its own."""
    inside = [part for part in metric.modules() if part is not metric]
    return [
        type(part).__name__
        for part in inside
        if getattr(part, "_defaults", {}).keys() - metric._defaults.keys()
    ]


def keep_apart(metric: Any) -> None:
    """Let an object of torchmetrics, and those in it, not merge with the other ranks' itself."""
    for part in metric.modules():
        if hasattr(part, "sync_on_compute"):
            part.sync_on_compute = part._to_sync = False


def _fold(
    reduction: Callable[..., Any], a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]
) -> Tensor:
    (x, n), (y, m) = a, b
    if reduction.__name__ == "dim_zero_mean":
        # torchmetrics weighs all processes equally; here a part weighs its number of updates.
        n, m = (own.reshape(-1, *[1] * (x.ndim - 1)) if own.ndim else own for own in (n, m))
        return (x * n + y * m) / (n + m).clamp(min=1)
    return reduction(torch.stack([x, y.to(x.dtype)]))


def _by_member(metrics: list[Torchmetric]) -> Any:
    """The values of a population's members, with a leading dimension; nan without updates."""
    values = [metric.value() for metric in metrics]
    found = [v for v, metric in zip(values, metrics, strict=True) if int(metric.updates)]
    if not found:
        return torch.as_tensor(values)
    none = tree_map(lambda leaf: torch.full_like(leaf, math.nan, dtype=torch.float64), found[0])
    filled_in = [
        v if int(metric.updates) else none for v, metric in zip(values, metrics, strict=True)
    ]
    return tree_map(lambda *leaves: torch.stack(leaves), *filled_in)


def _joined(parts: list[dict[str, Any]], metric: Any) -> dict[str, Any]:
    """Join the states of all parts as torchmetrics does when it synchronizes processes."""
    states: dict[str, Any] = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        if isinstance(metric._defaults[name], list):
            states[name] = [x for value in values for x in value]
        elif metric._reductions[name] is None:
            states[name] = values[0] if len(values) == 1 else torch.stack(values)
        else:
            states[name] = torch.cat(values)
    return states

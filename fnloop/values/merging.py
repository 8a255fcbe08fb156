"""Merge the metrics of many steps, and convert metrics to floats."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.values.metrics import Last, Mean, Metric, Metrics, Stop, Sum


def merge(parts: Iterable[Metrics]) -> dict[str, Any]:
    """Merge dicts of metrics in order; the result has the union of their names.

    >>> merged = merge([{"loss": Mean(4.0, 2)}, {"loss": Mean(1.0, 3), "lr": Last(0.1)}])
    >>> {name: float(metric) for name, metric in merged.items()}
    {'loss': 1.0, 'lr': 0.1}
    """
    result: dict[str, Any] = {}
    for part in parts:
        for name, metric in part.items():
            result[name] = result[name].merge(metric) if name in result else metric
    return result


def merge_all(parts: Sequence[Metrics]) -> dict[str, Any]:
    """Like `merge`, but with few tensor operations for many parts.

    >>> float(merge_all([{"loss": Mean(4.0, 2)}, {"loss": Mean(1.0, 3)}])["loss"])
    1.0
    """
    columns: dict[str, list[Any]] = {}
    for part in parts:
        for name, metric in part.items():
            if name in columns:
                columns[name].append(metric)
            else:
                columns[name] = [metric]
    return {name: _merge_column(column) for name, column in columns.items()}


def _merge_column(column: list[Any]) -> Any:
    kind = type(column[0])
    if len(column) == 1 or kind is Last or kind is Stop:
        return column[-1]
    if kind is Mean:
        total = _total([metric.total for metric in column])
        weight = _total([metric.weight for metric in column])
        if total is not None and weight is not None:
            return Mean(total, weight)
    if kind is Sum:
        total = _total([metric.total for metric in column])
        if total is not None:
            return Sum(total)
    return functools.reduce(lambda a, b: a.merge(b), column)


def _total(values: list[Any]) -> Any:
    """The sum, in float64 or int64; None if the values cannot be stacked."""
    first = values[0]
    try:
        if not isinstance(first, Tensor):
            total = sum(values)
            return None if isinstance(total, Tensor) else total
        if first.ndim == 0 and first.device.type == "cpu":
            return sum([value.item() for value in values])
        stacked = torch.stack(values)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return stacked.sum(0, dtype=torch.float64 if stacked.is_floating_point() else torch.int64)


def numbers_of(many: Iterable[Metrics]) -> list[dict[str, float]]:
    """Apply `fl.numbers` to each, with one device synchronization for all.

    >>> numbers_of([{"loss": Mean(4.0, 2)}, {"loss": Mean(torch.tensor(9.0), 3), "lr": Last(0.1)}])
    [{'loss': 2.0}, {'loss': 3.0, 'lr': 0.1}]
    """
    rows: list[dict[str, float]] = []
    waiting: dict[torch.device, list[tuple[dict[str, float], str, Tensor]]] = {}
    for metrics in many:
        row: dict[str, float] = {}
        for name, value in _entries(metrics):
            if isinstance(value, Tensor) and value.is_cpu:
                row[name] = float(value)
            elif isinstance(value, Tensor):
                row[name] = 0.0  # a placeholder: keeps the order of the names
                waiting.setdefault(value.device, []).append((row, name, value))
            else:
                row[name] = value
        rows.append(row)
    for group in waiting.values():
        values = [value.detach().reshape(()).to(torch.float64) for _, _, value in group]
        for (row, name, _), value in zip(group, torch.stack(values).tolist(), strict=True):
            row[name] = value
    return rows


def _entries(metrics: Metrics) -> Iterable[tuple[str, Any]]:
    for name, metric in metrics.items():
        if isinstance(metric, Stop):
            continue
        value = metric.value() if isinstance(metric, Metric) else metric
        entries: Mapping[str, Any] = value if isinstance(value, Mapping) else {"": value}
        for key, entry in entries.items():
            label = f"{name}/{key}" if key else name
            if isinstance(entry, Tensor) and entry.numel() == 1:
                yield label, entry
            elif not isinstance(entry, Tensor | str):
                with contextlib.suppress(TypeError, ValueError):
                    yield label, float(entry)


def numbers(metrics: Metrics) -> dict[str, float]:
    """Convert every metric to a float; a metric with a dict of values gives ``name/key`` entries.

    Synchronizes with the device. Metrics that are not a single number, such as a confusion matrix,
    are left out.

    Args:
        metrics: Metrics by name.

    >>> numbers({"loss": Mean(4.0, 2), "matrix": Sum(torch.ones(2, 2))})
    {'loss': 2.0}
    """
    return numbers_of([metrics])[0]


def find(metrics: Metrics, name: str) -> Any:
    """The value of the metric `name`, or None if there is none.

    ``"metric/key"`` finds one value of a metric that has several.

    >>> import fnloop as fl
    >>> found = {"val/digits": fl.metrics.confusion(torch.eye(2), torch.tensor([0, 1]))}
    >>> float(find(found, "val/digits/accuracy")), find(found, "val/loss")
    (1.0, None)
    """
    if name in metrics:
        return metrics[name].value()
    if "/" not in name:
        return None
    parts = name.split("/")
    for length in range(len(parts) - 1, 0, -1):
        metric = metrics.get("/".join(parts[:length]))
        if isinstance(metric, Metric):
            values = metric.value()
            return values.get("/".join(parts[length:])) if isinstance(values, Mapping) else None
    return None

"""Merge the metrics of many steps, and convert metrics to floats."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.trees.show import short
from fnloop.values.metrics import Last, Mean, Metric, Metrics, Stop, Sum, check_metrics

MANY = 1000
"""The longest list of numbers that a metric may have to be shown."""


def merge(parts: Iterable[Metrics]) -> dict[str, Any]:
    """Merge dicts of metrics in order; the result has the union of their names.

    >>> merged = merge([{"loss": Mean(4.0, 2)}, {"loss": Mean(1.0, 3), "lr": Last(0.1)}])
    >>> {name: float(metric) for name, metric in merged.items()}
    {'loss': 1.0, 'lr': 0.1}
    """
    result: dict[str, Any] = {}
    if not isinstance(parts, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"merge takes a list of dicts of metrics, got {short(parts)}.")
    for part in parts:
        if not isinstance(part, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"merge takes a list of dicts of metrics; one is {short(part)}.")
        for name, metric in part.items():
            result[name] = _merged(name, result[name], metric) if name in result else metric
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
    return {name: _merge_column(name, column) for name, column in columns.items()}


def _merged(name: str, a: Any, b: Any) -> Any:
    check_metrics({name: a}, "A part")
    if type(a) is not type(b):
        raise TypeError(
            f"The metric {name!r} is {short(a)} in one part and {short(b)} in another, which "
            "cannot be merged. Report it as one kind, or under two names."
        )
    try:
        return a.merge(b)
    except Exception as error:
        error.add_note(f"fnloop: this happened when the metric {name!r} was merged.")
        raise


def _merge_column(name: str, column: list[Any]) -> Any:
    kind = type(column[0])
    alike = all([type(metric) is kind for metric in column])
    if len(column) == 1 or (alike and (kind is Last or kind is Stop)):
        return column[-1]
    if alike and kind is Mean:
        total = _total([metric.total for metric in column])
        weight = _total([metric.weight for metric in column])
        if total is not None and weight is not None:
            return Mean(total, weight)
    if alike and kind is Sum:
        total = _total([metric.total for metric in column])
        if total is not None:
            return Sum(total)
    return functools.reduce(functools.partial(_merged, name), column)


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
    """Apply `fl.metrics.numbers` to each, with one device synchronization for all.

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


def _entries(metrics: Metrics) -> Iterator[tuple[str, Any]]:
    for name, metric in metrics.items():
        if not isinstance(metric, Stop):
            yield from _flat(name, metric.value() if isinstance(metric, Metric) else metric)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The numbers in a value, with their names: ``name/key`` of a dict, ``name[i]`` of a list."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(f"{name}/{key}" if key else name, entry)
    elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        yield name, value
    elif isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1:
        if len(value) <= MANY:
            for i, entry in enumerate(value):
                yield from _flat(f"{name}[{i}]", entry)
    elif not isinstance(value, Tensor | str):
        with contextlib.suppress(TypeError, ValueError):
            yield name, float(value)


def numbers(metrics: Metrics) -> dict[str, float]:
    """Convert every metric to floats.

    A metric whose value is a dict gives an entry ``name/key`` for each of its numbers; one whose
    value is a list or a 1-d tensor gives ``name[0]``, ``name[1]``, ..., if there are at most 1000.
    Left out are strings, complex numbers, longer lists, and tensors of more dimensions, such as a
    confusion matrix. Synchronizes with the device.

    Args:
        metrics: Metrics by name.

    >>> numbers({"loss": Mean(4.0, 2), "recall": Sum(torch.tensor([0.5, 0.25]))})
    {'loss': 2.0, 'recall[0]': 0.5, 'recall[1]': 0.25}
    """
    if not isinstance(metrics, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"numbers takes a dict of metrics, got {short(metrics)}.")
    return numbers_of([metrics])[0]


def find(metrics: Metrics, name: str) -> Any:
    """The value of the metric `name`, or None if there is none.

    ``"metric/key"`` and ``"metric[0]"`` find one value of a metric that has several. In a
    population a value has a leading dimension for the members.

    Args:
        metrics: What a step reports, or callbacks are given.
        name: Of the metric, or of a value within it.

    >>> import fnloop as fl
    >>> found = {"val/digits": fl.metrics.confusion(torch.eye(2), torch.tensor([0, 1]))}
    >>> float(find(found, "val/digits/accuracy")), find(found, "val/loss")
    (1.0, None)
    >>> float(find({"recall": Sum(torch.tensor([0.5, 0.25]))}, "recall[1]"))
    0.25
    """
    if not isinstance(metrics, Mapping) or not isinstance(name, str):
        raise TypeError(
            "find takes metrics, a dict of them, and the name of one; got "
            f"{short(metrics)} and {short(name)}."
        )
    if name in metrics:
        return metrics[name].value()
    for cut in range(len(name) - 1, 0, -1):
        if name[cut] in "/[" and isinstance(metric := metrics.get(name[:cut]), Metric):
            return _inside(metric.value(), name[cut:])
    return None


def _inside(value: Any, rest: str) -> Any:
    """The part of a value with the rest of a name, such as ``/key`` or ``[0]``; else None."""
    if not rest:
        return value
    if isinstance(value, Mapping):
        for key, entry in value.items():
            after = rest.removeprefix(f"/{key}")
            if after != rest and (not after or after[0] in "/["):
                return _inside(entry, after)
        return None
    index, _, after = rest[1:].partition("]")
    listed = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    if rest[0] != "[" or not listed or not index.isdecimal() or int(index) >= len(value):
        return None
    return _inside(value[int(index)], after)

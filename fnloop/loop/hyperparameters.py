"""A pipeline's hyperparameters as flat names and plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor

from fnloop.optim.base import Optimizer
from fnloop.optim.labels import by_label
from fnloop.schedules.by_count import ByCount
from fnloop.stages.base import Stage
from fnloop.stages.sequence import Sequence
from fnloop.trees.nodes import is_tree


def hyperparameters(step: Any) -> dict[str, Any]:
    """Every number, bool and string in the pipeline by dotted name, as trackers show them.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).mean()
    >>> sgd = fl.optim.sgd(fl.schedules.constant(0.1), momentum=0.9)
    >>> step = fl.pipe(loss, fl.grad, fl.accumulate(4), fl.update(sgd))
    >>> found = hyperparameters(step)
    >>> found["accumulate.k"], found["sgd.lr.value"], found["sgd.momentum"]
    (4, 0.1, 0.9)
    """
    if not isinstance(step, Stage):
        return {}
    found: dict[str, Any] = {} if step.uncompiled is step else {"compiled": True}
    if isinstance(step, Sequence):
        for name, part in zip(step.names, step.parts, strict=True):
            found.update({f"{name}/{key}": v for key, v in hyperparameters(part).items()})
            found.update({f"{name}.every": n for other, n in step.every if other == name})
        return found
    found.update(hyperparameters(getattr(step, "inner", None)))
    if step.uncompiled is step:
        found.update(_walk(step, step.slot or step.label, skip=_SKIPPED))
    return found


_SKIPPED = ("inner", "name", "loss")


def _walk(node: Any, prefix: str, skip: tuple[str, ...] = ("name",)) -> Iterator[tuple[str, Any]]:
    if isinstance(node, by_label):
        for label, optimizer in node.optimizers.items():
            for name, value in _walk(optimizer, prefix):
                yield f"{label}.{name}", value
    elif isinstance(node, ByCount):
        yield prefix, repr(node)
    elif is_tree(node):
        if isinstance(node, Optimizer):
            prefix = getattr(node, "name", prefix)
        for field in dataclasses.fields(cast("Any", node)):
            if field.name not in (*skip, "where", "groups"):
                yield from _walk(getattr(node, field.name), f"{prefix}.{field.name}")
    elif isinstance(node, tuple) and node and set(map(type, node)) == {str}:  # patterns
        yield prefix, ", ".join(node)
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from _walk(child, f"{prefix}.{i}")
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _walk(child, f"{prefix}.{key}")
    elif isinstance(node, Tensor):
        if not node.ndim:
            yield prefix, node.item()
    elif isinstance(node, (bool, int, float, str)):
        yield prefix, node

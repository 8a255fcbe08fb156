"""Metrics not yet merged, as JSON, so that a resumed run can continue an unfinished point.

A metric's structure is not stored: it is that of the first metric of the same name in the resumed
run. Where none comes before the point ends, a metric of one of the five plain kinds is what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fnloop.trees.equal import alike
from fnloop.trees.json_codec import decode, encode
from fnloop.trees.nodes import tree_leaves
from fnloop.values.metrics import Last, Max, Mean, Metrics, Min, Stop, Sum

_PLAIN = {
    type(each).__name__: each for each in (Mean(0.0, 1), Sum(0.0), Min(0.0), Max(0.0), Last(0.0))
}


def to_json(parts: Sequence[Metrics]) -> dict[str, Any]:
    """The numbers of each metric, in order; values that JSON cannot hold are left out.

    >>> from fnloop import Mean
    >>> to_json([{"loss": Mean(4.0, 2)}, {"loss": Mean(1.0, 3)}])
    {'loss': {'kind': 'Mean', 'leaves': [[4.0, 1.0], [2, 3]]}}
    """
    columns: dict[str, list[Any]] = {}
    for name, metric in itertools.chain.from_iterable(part.items() for part in parts):
        columns.setdefault(name, []).append(metric)
    found: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column[0], Stop):
            continue
        try:
            leaves = zip(*map(tree_leaves, column), strict=True)
            found[name] = {
                "kind": type(column[0]).__name__,
                "leaves": [_packed(list(leaf)) for leaf in leaves],
            }
        except ValueError:  # metrics of different shape, or values that JSON cannot hold
            continue
    return found


def from_json(held: Mapping[str, Any], metrics: Metrics) -> list[dict[str, Any]]:
    """The inverse of `to_json`, for metrics of the same kind as in `metrics`.

    >>> from fnloop import Mean
    >>> held = to_json([{"loss": Mean(4.0, 2)}, {"loss": Mean(1.0, 3)}])
    >>> from_json(held, {"loss": Mean(0.0, 1)})
    [{'loss': Mean(2)}, {'loss': Mean(0.3333)}]
    """
    parts: list[dict[str, Any]] = []
    for name, entry in held.items():
        metric: Any = metrics.get(name)
        examples, structure = optree.tree_flatten(metric)
        leaves = [_unpacked(leaf) for leaf in entry["leaves"]]
        if type(metric).__name__ != entry["kind"] or len(leaves) != len(examples):
            continue
        column = list(zip(*leaves, strict=True))
        parts += [{} for _ in range(len(column) - len(parts))]
        for part, values in zip(parts, column, strict=False):
            placed = [_placed(v, like) for v, like in zip(values, examples, strict=True)]
            part[name] = structure.unflatten(placed)
    return parts


def from_json_alone(held: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inverse of `to_json` for metrics of the plain kinds, without examples; leaves out others.

    >>> from fnloop import Mean
    >>> from_json_alone(to_json([{"loss": Mean(4.0, 2)}]))
    [{'loss': Mean(2)}]
    """
    return from_json(held, {name: _PLAIN.get(entry["kind"]) for name, entry in held.items()})


def _packed(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and all(alike(first, value) for value in values):
        return {"stacked": encode(torch.stack(values).detach().cpu())}
    return [encode(v.detach().cpu() if isinstance(v, Tensor) else v) for v in values]


def _unpacked(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        return list(decode(values["stacked"]).unbind())
    return [decode(value) for value in values]


def _placed(value: Any, like: Any) -> Any:
    both = isinstance(value, Tensor) and isinstance(like, Tensor)
    return value.to(like.device) if both else value

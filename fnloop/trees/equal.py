"""Compare pytrees, and list their differences."""

from __future__ import annotations

import struct
from typing import Any

import optree
import torch
from torch import Tensor

from fnloop.trees.containers import container_rows
from fnloop.trees.named import by_name
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short


def tree_equal(a: Any, b: Any) -> bool:
    """Whether `a` and `b` have the same structure and bitwise equal leaves.

    ``nan`` equals a ``nan`` with the same bits; ``0.0`` differs from ``-0.0``. The layouts of
    `fl.Tensors` may differ.

    >>> x = {"w": torch.tensor([1.0, float("nan")])}
    >>> tree_equal(x, {"w": x["w"].clone()}), tree_equal(x, {"w": x["w"] + 0.1})
    (True, False)
    """
    if a is b:
        return True
    leaves_a, structure_a = optree.tree_flatten(by_name(a))
    leaves_b, structure_b = optree.tree_flatten(by_name(b))
    return structure_a == structure_b and all(map(_same, leaves_a, leaves_b))


def same_structure(a: Any, b: Any) -> bool:
    """Whether `a` and `b` have the same structure; their leaves may differ."""
    return optree.tree_structure(by_name(a)) == optree.tree_structure(by_name(b))


def alike(a: Any, b: Any) -> bool:
    """Whether two leaves are tensors of the same shape, dtype and device."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def tree_diff(a: Any, b: Any) -> str:
    """A table of the differences between `a` and `b`, by path; empty if they are equal.

    Lists leaves, then containers and static fields.

    >>> print(tree_diff({"w": torch.zeros(2), "n": 1}, {"w": torch.ones(2), "n": 1}))
    path  a       b       difference
    w     f32[2]  f32[2]  2 of 2 values, at most 1
    """
    left, right = dict(tree_items(a)), dict(tree_items(b))
    rows: list[tuple[str, ...]] = []
    for path in [*left, *(p for p in right if p not in left)]:
        if path not in right:
            rows.append((path, short(left[path]), "-", "only in a"))
        elif path not in left:
            rows.append((path, "-", short(right[path]), "only in b"))
        elif not _same(left[path], right[path]):
            x, y = left[path], right[path]
            rows.append((path, short(x), short(y), _difference(x, y)))
    rows += container_rows(a, b)
    return table(("path", "a", "b", "difference"), rows) if rows else ""


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Format rows of text as aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        if x is y:
            return True
        if x.dtype != y.dtype or x.shape != y.shape or x.device != y.device:
            return False
        return x.is_meta or torch.equal(_bits(x), _bits(y))
    if type(x) is not type(y):
        return False
    if isinstance(x, float):
        return struct.pack("d", x) == struct.pack("d", y)
    return bool(x == y)


def _bits(x: Tensor) -> Tensor:
    dense = x.detach().resolve_conj().resolve_neg().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _difference(x: Any, y: Any) -> str:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return "value" if type(x) is type(y) else "type"
    for aspect in ("shape", "dtype", "device"):
        if getattr(x, aspect) != getattr(y, aspect):
            return aspect
    if x.dtype.is_complex:
        return "values"
    x64, y64 = x.detach().to(torch.float64), y.detach().to(torch.float64)
    changed = (x64 != y64) & ~(x64.isnan() & y64.isnan())
    size = (x64 - y64).abs()[changed]
    if not size.numel():
        return "bits only (nan or -0.0)"
    return f"{int(changed.sum())} of {x.numel()} values, at most {float(size.max()):.3g}"

"""Products of a column and a row, as the gradients of single examples are, that are not stored.

The weights of a linear layer have such a gradient for each example. What is wanted of them is their
norms and their weighted sum, and both follow from the columns and the rows: the norm is the product
of two norms, and the sum is one product of matrices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten: Any = torch.ops.aten
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


class _Outer(NamedTuple):
    """``column * row``, for each example.

    Attributes:
        column: ``[examples, m, 1]``.
        row: ``[examples, 1, n]``.
        turned: Whether what is wanted is its transpose.
    """

    column: Node
    row: Node
    turned: bool


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Such products elementwise, so that `rewrite` finds them, and they fuse where it does not."""
    return a * b if a.shape[2] == 1 else NotImplemented


def rewrite(graph: GraphModule) -> None:
    """Replace the norms and the weighted sums of the products in a graph that `bmm` was used in."""
    for node in list(graph.graph.nodes):
        if node.target is _aten.linalg_vector_norm.default:
            new = _norm(node)
        elif node.target is _aten.sum.dim_IntList:
            new = _sum(node)
        else:
            continue
        if new is not None:
            node.replace_all_uses_with(new)


def _norm(node: Node) -> Node | None:
    if len(node.args) != 3 or node.args[1] != 2 or not _is_each(node.args[0], node.args[2], (1, 2)):
        return None
    source = node.args[0]
    outer = _outer(source)
    if outer is None:
        return None
    norm = _aten.linalg_vector_norm.default
    with node.graph.inserting_before(node):
        found = [
            _call(node, norm, (each, 2, [1, 2]), node.meta["val"], **node.kwargs)
            for each in (outer.column, outer.row)
        ]
        return _call(node, _aten.mul.Tensor, tuple(found), node.meta["val"])


def _sum(node: Node) -> Node | None:
    """``where(flag, product * factor, 0).sum(0)``, the where and the flag being optional."""
    source, dims = node.args[:2]
    if len(node.args) > 2 or node.kwargs or not _is_each(source, dims, (0,)):
        return None
    flag = None
    assert isinstance(source, Node)
    if source.target is _aten.where.self:
        flag, source, other = source.args
        if not isinstance(other, Node) or other.target is not _aten.zeros_like.default:
            return None
    if not isinstance(source, Node) or source.target is not _aten.mul.Tensor:
        return None
    weighed, factor = source.args
    outer = _outer(weighed)
    if outer is None or not all(f is None or _is_factor(f, outer) for f in (factor, flag)):
        return None
    with node.graph.inserting_before(node):
        value = outer.column.meta["val"]
        column = _call(node, _aten.mul.Tensor, (outer.column, factor), value)
        row = outer.row
        if flag is not None:  # not through the factor: what is left out may be infinite
            column, row = (_where(node, flag, each) for each in (column, row))
        flat = [_without(node, column, 2), _without(node, row, 1)]
        left, right = reversed(flat) if outer.turned else flat
        value = left.meta["val"]
        turned = _call(node, _aten.t.default, (left,), value.t())
        return _call(node, _aten.mm.default, (turned, right), node.meta["val"])


def _call(at: Node, target: Any, args: tuple[Any, ...], value: Any, **kwargs: Any) -> Node:
    node = at.graph.call_function(target, args, kwargs)
    node.meta["val"] = value
    return node


def _where(at: Node, flag: Any, kept: Node) -> Node:
    value = kept.meta["val"]
    zeros = _call(at, _aten.zeros_like.default, (kept,), value)
    return _call(at, _aten.where.self, (flag, kept, zeros), value)


def _without(at: Node, node: Node, dim: int) -> Node:
    return _call(at, _aten.squeeze.dim, (node, dim), node.meta["val"].squeeze(dim))


def _outer(node: Any) -> _Outer | None:
    """The product that `node` is, or a transpose of it within each example."""
    turned = False
    while isinstance(node, Node) and node.args and isinstance(node.args[0], Node):
        (inner, *dims), shape = node.args, _shape(node)
        assert isinstance(inner, Node)
        if node.target is _aten.transpose.int and _are(dims, (1, 2), len(shape)):
            turned = not turned
        elif node.target not in _VIEWS or _shape(inner) != shape:
            break
        node = inner
    if not isinstance(node, Node) or node.target is not _aten.mul.Tensor:
        return None
    column, row = node.args
    if not isinstance(column, Node) or not isinstance(row, Node):
        return None
    (a, b), examples = (_shape(column), _shape(row)), _shape(node)[:1]
    if len(a) != 3 or len(b) != 3 or not a[:1] == b[:1] == examples or a[2] != 1 or b[1] != 1:
        return None
    alike = column.meta["val"].dtype == row.meta["val"].dtype
    return _Outer(column, row, turned) if alike else None


def _is_each(node: Any, dims: Any, wanted: tuple[int, ...]) -> bool:
    """Whether `node` has three dimensions, and `dims` are the wanted ones of them."""
    return isinstance(node, Node) and len(_shape(node)) == 3 and _are(dims, wanted, 3)


def _are(dims: Any, wanted: tuple[int, ...], ndim: int) -> bool:
    return dims is not None and tuple(sorted(dim % ndim for dim in dims)) == wanted


def _is_factor(node: Any, outer: _Outer) -> bool:
    """Whether it is one number for each example, or for all, or a flag; and widens nothing."""
    examples, dtype = _shape(outer.column)[0], outer.column.meta["val"].dtype
    if not isinstance(node, Node) or _shape(node) not in ((), (examples, 1, 1)):
        return False
    return node.meta["val"].dtype in (dtype, torch.bool)


def _shape(node: Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else (None,)

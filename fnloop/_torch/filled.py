"""Whether a graph with symbols in it is, with numbers in their place, another graph.

Sizes that are symbols are no integers to Python: code that formats one, or asks for its type, goes
another way without saying so. A graph recorded with symbols is therefore compared to one that was
recorded without, operation by operation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten: Any = torch.ops.aten
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)


def difference(symbolic: GraphModule, plain: GraphModule, fill: Callable[[Any], Any]) -> str | None:
    """The first operation in which two graphs differ; None if they are the same.

    Args:
        symbolic: Recorded with symbols.
        plain: Recorded with numbers.
        fill: Puts these numbers for the symbols.
    """
    (ours, first), (theirs, second) = _operations(symbolic), _operations(plain)
    for a, b in zip(ours, theirs, strict=False):
        if _kind(a) != _kind(b) or not _same_constants(symbolic, plain, a):
            return f"{a.format_node()}, which was {b.format_node()}"
        mine = fill(_told((a.args, a.kwargs, _shapes(a.meta.get("val"))), first))
        others = _told((b.args, b.kwargs, _shapes(b.meta.get("val"))), second)
        if mine != others:
            return f"{a.format_node()}, which was {b.format_node()}"
    return None if len(ours) == len(theirs) else f"{len(ours)} operations, which were {len(theirs)}"


def _operations(graph: GraphModule) -> tuple[list[Node], dict[Node, int]]:
    """The nodes that are neither sizes nor the whole of another, and the places of all."""
    found: list[Node] = []
    places: dict[Node, int] = {}
    for node in graph.graph.nodes:
        if isinstance(node.meta.get("val"), _NUMBERS):
            continue
        if _is_whole(node):
            places[node] = places[node.args[0]]
        else:
            places[node] = len(found)
            found.append(node)
    return found, places


_WHOLE = (_aten.slice.Tensor, _aten.slice_backward.default)


def _is_whole(node: Node) -> bool:
    """Whether a node is all of its input: `x[:]`, which PyTorch leaves out where it knows it."""
    if node.target is _aten.alias.default:
        return True
    if node.target not in _WHOLE:
        return False
    start, stop, *step = node.args[2:] if node.target is _aten.slice.Tensor else node.args[3:]
    return (start, stop) == (0, sys.maxsize) and step in ([], [1])


def _kind(node: Node) -> Any:
    return node.op, None if node.op in ("placeholder", "output") else node.target


def _same_constants(symbolic: GraphModule, plain: GraphModule, node: Node) -> bool:
    if node.op != "get_attr":
        return True
    a, b = getattr(symbolic, str(node.target)), getattr(plain, str(node.target))
    both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype
    return a is b or (both and torch.equal(a, b))


def _told(value: Any, places: dict[Node, int]) -> Any:
    """`value` with a node's place for a node, and a size for a node that is one."""
    if isinstance(value, Node):
        return ("node", places[value]) if value in places else value.meta["val"]
    if isinstance(value, (tuple, list)):
        return tuple([_told(each, places) for each in value])
    if isinstance(value, dict):
        return {name: _told(each, places) for name, each in value.items()}
    return value


def _shapes(value: Any) -> Any:
    """Shape, dtype and device of a result, or of each."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    return [_shapes(each) for each in value] if isinstance(value, (tuple, list)) else None

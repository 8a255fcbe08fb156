"""Which operations of a recorded step are the forward pass of a loss, and which its backward pass.

Marks are in the nodes' ``meta``: ``meta["pass"]`` is ``(number of the pass, is it backward)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import NamedTuple

from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fnloop._torch.tracing import recording

_MARK = "pass"


class Pass(NamedTuple):
    """The operations of one loss, in order."""

    forward: list[Node]
    backward: list[Node]


def begin() -> Node | None:
    """Where a forward pass begins, for `backward`; None unless a step is being recorded."""
    graph = _graph() if recording() is not None else None
    return None if graph is None else _last(graph)


@contextlib.contextmanager
def backward(begun: Node) -> Generator[None]:
    """The operations in this block are a backward pass; those since `begun`, the forward pass."""
    graph = begun.graph
    between = _last(graph)
    yield
    number = len(graph.nodes)  # another one for each pass
    node, is_backward = _last(graph), between is not _last(graph)
    while node is not begun:
        is_backward = is_backward and node is not between
        node.meta[_MARK] = (number, is_backward)
        node = node.prev


def passes(graph: GraphModule) -> list[Pass]:
    """The passes in a recorded graph, in order."""
    found: dict[int, Pass] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and _MARK in node.meta:
            number, is_backward = node.meta[_MARK]
            found.setdefault(number, Pass([], []))[is_backward].append(node)
    return [each for each in found.values() if each.forward and each.backward]


def _graph() -> Graph | None:
    mode = get_proxy_mode()
    return None if mode is None else mode.tracer.graph


def _last(graph: Graph) -> Node:
    return next(iter(reversed(graph.nodes)))

"""What a tensor was computed from, by autograd's graph."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Set
from typing import Any, TypeAlias

import torch
from torch import Tensor

Edge: TypeAlias = tuple[Any, int]
"""A place in the graph: a node, and the number of its output."""


def edge_of(tensor: Tensor) -> Edge:
    """The place of a tensor that requires gradients; whoever compares places keeps it."""
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def inputs_of(edge: Edge) -> Iterable[Edge]:
    """The places that a place was computed from directly; none for a leaf."""
    return edge[0].next_functions


def origins(edges: Iterable[Edge], known: Set[Edge]) -> tuple[set[Edge], list[Tensor]]:
    """Go back from some places: the known ones that are met first, and the leaves not known.

    >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> twice = 2 * a
    >>> met, leaves = origins([edge_of(twice * b)], {edge_of(twice)})
    >>> met == {edge_of(twice)}, leaves[0] is b
    (True, True)
    """
    met, leaves = set[Edge](), list[Tensor]()
    seen, waiting = set[Edge](), list(edges)
    while waiting:
        edge = waiting.pop()
        if edge[0] is None or edge in seen:
            continue
        seen.add(edge)
        if edge in known:
            met.add(edge)
        elif hasattr(edge[0], "variable"):
            leaves.append(edge[0].variable)
        else:
            waiting += inputs_of(edge)
    return met, leaves


def made_through(tensor: Tensor, name: str) -> bool:
    """Whether a node of this name is among what a tensor that requires gradients was computed from.

    >>> x = torch.ones(2, requires_grad=True)
    >>> made_through(2 * x.exp(), "ExpBackward0"), made_through(2 * x, "ExpBackward0")
    (True, False)
    """
    seen, waiting = set[Any](), [edge_of(tensor)[0]]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == name:
            return True
        seen.add(node)
        waiting += [above for above, _ in node.next_functions]
    return False


def held(leaves: list[Tensor]) -> list[Tensor]:
    """Those to which Python refers anywhere but in this list, and not only autograd's graph.

    >>> def leaves():
    ...     kept, passing = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    ...     return kept, origins([edge_of(kept + passing)], set())[1], kept + passing
    >>> kept, found, graph = leaves()
    >>> len(found), held(found) == [kept]
    (2, True)
    """
    with torch.enable_grad():
        graph = torch.ones((), device="cpu").requires_grad_() + 1
    example = origins([edge_of(graph)], set())[1]
    lone = next(map(sys.getrefcount, example))
    counts = list(map(sys.getrefcount, leaves))
    return [leaf for leaf, count in zip(leaves, counts, strict=True) if count > lone]

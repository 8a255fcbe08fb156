"""How much memory the tensors of a graph take, and when."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence, Set
from operator import getitem
from typing import Any

from torch import Tensor
from torch.fx import Node


def numbers(shape: Sequence[Any]) -> list[int]:
    """A shape, with what its symbols stood for when it was recorded."""
    return [size if isinstance(size, int) else size.node.hint for size in shape]


def elements(node: Node) -> int:
    """The number of elements that an operation writes; 0 if it makes a view."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or is_view(node):
        return 0
    return math.prod(numbers(value.shape))


def bytes_of(node: Node) -> int:
    """The memory that an operation allocates."""
    written = elements(node)
    return written * node.meta["val"].element_size() if written else 0


def is_view(node: Node) -> bool:
    """Whether the result shares the memory of the first argument."""
    return _makes_view(node.target)


@functools.cache
def _makes_view(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any([r.alias_info is not None for r in schema.returns])


def source(node: Node) -> Node:
    """The operation that made the memory of a view, or the results of which the node is one."""
    while (is_view(node) or node.target is getitem) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def readers(node: Node) -> list[Node]:
    """All operations that read the memory of a result, also by views of it."""
    found: list[Node] = []
    for user in node.users:
        found.append(user)
        if is_view(user) or user.target is getitem:
            found += readers(user)
    return found


def peak(
    nodes: Sequence[Node], again: Mapping[Node, Sequence[Node]], reading: Mapping[Node, Set[Node]]
) -> int:
    """Bytes of the tensors that operations make, at their peak, done one after the other.

    Each tensor is freed after its last use; one without any is kept.

    Args:
        nodes: The operations.
        again: Operations that are done again, by the one right before which they are.
        reading: For operations that are done again, those that read the new result.
    """
    size = {node: bytes_of(node) for node in nodes}
    reads = {node: node.all_input_nodes for node in nodes}
    order: list[tuple[Node, bool, list[tuple[Node, bool]]]] = []
    done: set[Node] = set()
    for node in nodes:
        for each in again.get(node, ()):
            done.add(each)
            order.append((each, True, [(n, n in done) for n in reads[each]]))
        order.append((node, False, [(n, node in reading.get(n, ())) for n in reads[node]]))
    owner: dict[tuple[Node, bool], tuple[Node, bool]] = {}
    last: dict[tuple[Node, bool], int] = {}
    for i, (node, new, inputs) in enumerate(order):
        made = (node, new)
        owner[made] = owner.get(inputs[0], inputs[0]) if inputs and is_view(node) else made
        for each in inputs:
            last[owner.get(each, each)] = i
    ends: dict[int, list[Node]] = {}
    for (node, _), i in last.items():
        ends.setdefault(i, []).append(node)
    now = most = 0
    for i, (node, _, _) in enumerate(order):
        now += size[node]
        most = max(most, now)
        now -= sum([size.get(each, 0) for each in ends.get(i, ())])
    return most

"""Keep less of a forward pass in memory, and compute it again in the backward pass.

The forward pass is cut into segments where little crosses the cut. What crosses is kept. Of the
first segments the rest is not: the backward pass computes it again, each value right before it
needs it, so that one segment at a time is in memory. Matrix products and convolutions are computed
again last, if the rest is not enough; until then, what PyTorch's partitioner keeps is kept.

How many segments there are, and of how many what is computed again, is tried out: which tensors
are in memory when is known without running anything.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from fnloop._torch.lifetimes import bytes_of, elements, numbers, peak, readers, source
from fnloop._torch.partitioner import worth_keeping
from fnloop._torch.passes import Pass, passes

SEGMENTS = (1, 2, 4, 8, 12, 16, 24, 32)
"""Numbers of segments that are tried."""

ELEMENT = 40
"""Operations of a matrix product that take as long as one element of anything else."""


class Repeats(NamedTuple):
    """What is computed again.

    Attributes:
        before: Operations of the forward pass, by that of the backward pass right before which.
        reading: By operation, those that read its new result.
        peak: Bytes of what forward and backward passes make, at the peak.
        cost: How long it takes.
    """

    before: dict[Node, list[Node]]
    reading: dict[Node, Set[Node]]
    peak: int
    cost: float


def recompute(graph: GraphModule, memory: float) -> None:
    """Change a graph so that forward and backward passes need a share of the memory at the peak.

    If they need more in any case, they need as little as can be.

    Args:
        graph: From `record`.
        memory: The share, between 0 and 1, of what they need if all is kept.
    """
    found = passes(graph)
    if not found:
        return
    last = found[-1].backward[-1]
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    nodes = nodes[: nodes.index(last) + 1]
    enough = memory * peak(nodes, {}, {})
    worth = {node for each in found for node in worth_keeping(each)}
    tried = [_least(nodes, found, worth, segments, enough) for segments in SEGMENTS]
    chosen = min(tried, key=lambda repeats: (max(repeats.peak, enough), repeats.cost))
    _repeat(graph, chosen)


def _least(
    nodes: Sequence[Node], found: Sequence[Pass], worth: Set[Node], segments: int, enough: float
) -> Repeats:
    """The fewest repeats with this number of segments that are enough."""
    cuts = [_cuts(each, segments) for each in found]

    @functools.cache
    def at(level: int) -> Repeats:
        light, heavy = min(level, segments), max(0, level - segments)
        before: dict[Node, list[Node]] = {}
        reading: dict[Node, Set[Node]] = {}
        for each, ends in zip(found, cuts, strict=True):
            lost = _lost(each, ends, worth, light, heavy)
            before.update(_before(each, lost))
            backward = set(each.backward)
            reading.update(dict.fromkeys(lost, backward))
        cost = sum([_cost(node) for again in before.values() for node in again])
        return Repeats(before, reading, peak(nodes, before, reading), cost)

    levels = range(1, 2 * segments + 1)
    place = bisect.bisect_left(levels, True, key=lambda level: at(level).peak <= enough)
    return at(levels[min(place, len(levels) - 1)])


def _cuts(each: Pass, segments: int) -> list[int]:
    """The ends of the segments of a forward pass."""
    place = {node: i for i, node in enumerate(each.forward)}
    backward = set(each.backward)
    crossing, read = [0] * (len(place) + 1), [0] * (len(place) + 1)
    for node, i in place.items():
        users = readers(node)
        crossing[i + 1] += bytes_of(node)
        crossing[max([place[u] for u in users if u in place], default=i) + 1] -= bytes_of(node)
        read[i + 1] = read[i] + (0 if backward.isdisjoint(users) else bytes_of(node))
    for i in range(len(place)):
        crossing[i + 1] += crossing[i]
    found: set[int] = set()
    for n in range(1, segments):
        low, middle, high = (read[-1] * (n + d) / segments for d in (-0.5, 0, 0.5))
        near = range(bisect.bisect_left(read, low), bisect.bisect_right(read, high))
        found.add(min(near, key=lambda i: (crossing[i], abs(read[i] - middle)), default=0))
    return [*sorted(found - {0}), len(place)]


def _lost(each: Pass, ends: Sequence[int], worth: Set[Node], light: int, heavy: int) -> set[Node]:
    """The values of a forward pass that are not kept.

    Args:
        each: The pass.
        ends: The ends of its segments.
        worth: What is worth keeping.
        light: Number of segments of which everything but that is computed again.
        heavy: Number of segments of which that is, too.
    """
    place = {node: i for i, node in enumerate(each.forward)}
    lost: set[Node] = set()
    for i, node in enumerate(each.forward):
        segment = bisect.bisect_right(ends, i)
        if segment >= (heavy if node in worth else light):
            continue
        made_by = source(node)
        if made_by is not node and made_by not in lost:
            continue  # a view of what is there
        if all([place.get(user, -1) < ends[segment] for user in readers(node)]):
            lost.add(node)
    return lost


def _before(each: Pass, lost: Set[Node]) -> dict[Node, list[Node]]:
    """What is lost, by the first operation of the backward pass that needs it."""
    before: dict[Node, list[Node]] = {}
    done: set[Node] = set()
    for node in each.backward:
        open_ = [n for n in node.all_input_nodes if n in lost and n not in done]
        while open_:
            missing = [n for n in open_[-1].all_input_nodes if n in lost and n not in done]
            if missing:
                open_ += missing
            elif (made := open_.pop()) not in done:
                done.add(made)
                before.setdefault(node, []).append(made)
    return before


def _repeat(graph: GraphModule, repeats: Repeats) -> None:
    new: dict[Node, Node] = {}
    for node, again in repeats.before.items():
        with graph.graph.inserting_before(node):
            for each in again:
                new[each] = graph.graph.node_copy(each, lambda n: new.get(n, n))
    for old, made in new.items():
        for user in [user for user in old.users if user in repeats.reading[old]]:
            user.replace_input_with(old, made)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def is_product(node: Node) -> bool:
    """Whether an operation is a matrix product, a convolution or an attention."""
    return getattr(node.target, "overloadpacket", None) in flop_registry


def _cost(node: Node) -> int:
    """How long an operation takes, in operations of a matrix product."""
    if not is_product(node):
        return ELEMENT * elements(node)
    args, kwargs, made = map_arg((node.args, node.kwargs, node), _without_values)
    return flop_registry[node.target.overloadpacket](*args, **kwargs, out_val=made)  # type: ignore[union-attr]


def _without_values(node: Node) -> Any:
    return tree_map_only(
        Tensor, lambda t: torch.empty(numbers(t.shape), device="meta"), node.meta["val"]
    )

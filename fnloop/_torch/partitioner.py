"""What is worth keeping of a forward pass, as PyTorch's own partitioner finds it."""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch import partitioners
from torch.fx import Graph, GraphModule, Node
from torch.utils._ordered_set import OrderedSet

from fnloop._torch.passes import Pass

_partitioners: Any = partitioners

_NEVER = int(1e9)
"""How far from the backward pass the partitioner says that unneeded operations are."""


def worth_keeping(each: Pass) -> set[Node]:
    """The least bytes from which the backward pass can be computed without products again.

    It is the minimal cut that ``torch.compile`` finds between its two graphs if it is to recompute
    aggressively.
    """
    joint, originals, info = _joint(each)
    options = _partitioners.MinCutOptions(
        ban_if_used_far_apart=False,
        ban_if_long_fusible_chains=False,
        ban_if_materialized_backward=False,
        ban_if_not_in_allowlist=False,
        ban_if_reduction=True,
    )
    kept, _ = _partitioners.solve_min_cut(joint, info, options)
    return {originals[node] for node in kept}


def _joint(each: Pass) -> tuple[Graph, dict[Node, Node], Any]:
    """The pass as a graph of its own, what each of its nodes was, and what is told about them."""
    joint, copies = Graph(), dict[Node, Node]()
    inside = {*each.forward, *each.backward}
    for node in (*each.forward, *each.backward):
        for given in node.all_input_nodes:
            if given not in inside and given not in copies:
                copies[given] = joint.placeholder(given.name)
                copies[given].meta = given.meta
    for node in (*each.forward, *each.backward):
        copies[node] = joint.node_copy(node, copies.__getitem__)
    joint.output(tuple([copies[n] for n in each.backward if not inside.issuperset(n.users)]))
    GraphModule(torch.nn.Module(), joint)
    originals = {copy: node for node, copy in copies.items()}
    inputs = [node for node in joint.nodes if node.op == "placeholder"]
    forward = OrderedSet([*inputs, *[copies[node] for node in each.forward]])
    backward = OrderedSet([copies[node] for node in each.backward])
    info = _partitioners.NodeInfo(
        inputs=inputs,
        _required_fw_nodes=forward,
        required_bw_nodes=backward,
        tangents_closure=backward,
        unclaimed_nodes=OrderedSet(),
        fw_order={node: i for i, node in enumerate(forward)},
        static_lifetime_input_nodes=OrderedSet(inputs),  # kept in any case
    )
    for node in reversed(joint.nodes):
        far: Any = [user.dist_from_bw + 1 for user in node.users if user.op != "output"]
        node.dist_from_bw = 0 if node in backward else min([_NEVER, *far])
    return joint, originals, info

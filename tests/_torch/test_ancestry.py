"""What a tensor was computed from."""

from __future__ import annotations

import torch

from fnloop._torch.ancestry import edge_of, held, inputs_of, origins


def leaf():
    return torch.ones(2, requires_grad=True)


def test_what_is_known_is_met_first_and_other_leaves_are_found():
    a, b, c = leaf(), leaf(), leaf()
    middle = a * b
    known = {edge_of(middle), edge_of(c)}
    met, leaves = origins([edge_of(middle * c), edge_of(middle + 1)], known)
    assert met == known and leaves == []
    met, leaves = origins(inputs_of(edge_of(middle)), known)
    assert met == set() and {id(t) for t in leaves} == {id(a), id(b)}


def test_outputs_of_one_node_are_told_apart():
    left, right = leaf().unbind()
    assert origins([edge_of(left * 2)], {edge_of(left), edge_of(right)})[0] == {edge_of(left)}


def test_leaves_that_only_the_graph_holds():
    kept = leaf()
    result = kept * leaf() * leaf()
    leaves = origins([edge_of(result)], set())[1]
    assert len(leaves) == 3
    (found,) = held(leaves)
    assert found is kept
    del kept, found
    assert held(leaves) == []
